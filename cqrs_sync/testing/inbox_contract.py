"""
The promises of an inbox as a test class.

```python
class TestMyInbox(InboxContract):
    @pytest.fixture
    def inbox(self):
        return MyInbox(...)              # nothing in it, and nobody else uses it

    @pytest.fixture
    def atomic(self):
        return my_database.transaction   # a context manager: commits, rolls back; inside another, a savepoint
```

`write` is a function that writes a text in the transaction that is open, and `written` one that
returns all that has committed: who has a database gives these fixtures, too, and `careless`, what
code in a block may do to its transaction. Where a backend cannot do something, it says so in `features`.
"""

from __future__ import annotations

from collections.abc import Sequence

from cqrs_sync.testing.inbox.asking import AskingContract
from cqrs_sync.testing.inbox.counting import CountingContract
from cqrs_sync.testing.inbox.receipts import Atomic, InboxFeatures
from cqrs_sync.testing.inbox.waiting import WaitingContract


class InboxContract(AskingContract, WaitingContract, CountingContract):
    """What every Inbox promises."""


__all__: Sequence[str] = ["Atomic", "InboxContract", "InboxFeatures"]
