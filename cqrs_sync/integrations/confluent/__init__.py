"""
Kafka through confluent-kafka, that is librdkafka: install `cqrs-sync[confluent]`.

```python
broker = ConfluentKafkaBroker("127.0.0.1:9092")
```

One module per concern: `broker` is the front door, `publishing` is one call of
`publish`, made of `attempt`s; `doctor` keeps a healthy `producer` for it,
`subscription` receives; `settings`, `failures` and `lines` translate options, errors
and the log, `cqrs_sync.kafka` messages.
"""

from __future__ import annotations

from cqrs_sync.integrations import needs

with needs("confluent"):
    from cqrs_sync.integrations.confluent.broker import ConfluentKafkaBroker

__all__ = ["ConfluentKafkaBroker"]
