"""
Kafka through kafka-python: install `cqrs-sync[kafka]`.

```python
broker = KafkaBroker("127.0.0.1:9092")
```

One module per concern: `broker` is the front door, `publishing` is one call of
`publish`, `doctor` keeps a healthy `producer` for it, `subscription` receives;
`settings` and `failures` translate options and errors, `cqrs_sync.kafka` messages.
"""

from __future__ import annotations

import warnings

from cqrs_sync.integrations import needs

with needs("kafka"), warnings.catch_warnings():
    # kafka-python loads its schemas in a way that Python 3.11 and 3.12 warn about.
    warnings.filterwarnings("ignore", "(read|open)_text is deprecated", DeprecationWarning)
    from cqrs_sync.integrations.kafka.broker import KafkaBroker

__all__ = ["KafkaBroker"]
