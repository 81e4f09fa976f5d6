"""
The promises of an outbox as a test class.

```python
class TestMyOutbox(OutboxContract):
    @pytest.fixture
    def outbox(self):
        return MyOutbox(...)             # nothing in it, and nobody else uses it

    @pytest.fixture
    def atomic(self):
        return my_database.transaction   # a context manager: commits, rolls back; inside another, a savepoint
```

`lenient_outbox` is an outbox on the same database with `strict=False`, `cut_connections` a
function that has the server close all connections; who has them gives these fixtures, too.
Where a backend cannot do something, it says so in `features`.
"""

from __future__ import annotations

from collections.abc import Sequence

from cqrs_sync.testing.outbox.claiming import ClaimingContract
from cqrs_sync.testing.outbox.connections import ConnectionsContract
from cqrs_sync.testing.outbox.entries import Atomic, OutboxFeatures
from cqrs_sync.testing.outbox.keeping import KeepingContract
from cqrs_sync.testing.outbox.order import OrderContract
from cqrs_sync.testing.outbox.settling import SettlingContract


class OutboxContract(KeepingContract, ConnectionsContract, ClaimingContract, OrderContract, SettlingContract):
    """What every Outbox promises."""


__all__: Sequence[str] = ["Atomic", "OutboxContract", "OutboxFeatures"]
