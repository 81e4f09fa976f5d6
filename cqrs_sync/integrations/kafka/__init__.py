"""
Kafka through kafka-python: install `cqrs-sync[kafka]`.

```python
broker = KafkaBroker("127.0.0.1:9092")
```

`broker` is the front door and looks at topics, `producer` and `subscription` implement the port of `cqrs_sync.kafka`.
`settings` translates options; `client` translates errors, and repairs and watches what kafka-python does.
"""

from __future__ import annotations

import warnings

from cqrs_sync.integrations import requires_extra

with requires_extra("kafka"), warnings.catch_warnings():
    # kafka-python loads its schemas in a way that Python 3.11 and 3.12 warn about.
    warnings.filterwarnings("ignore", "(read|open)_text is deprecated", DeprecationWarning)
    from cqrs_sync.integrations.kafka.broker import KafkaBroker

__all__ = ["KafkaBroker"]
