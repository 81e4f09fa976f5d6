"""
Kafka through confluent-kafka, that is librdkafka: install `cqrs-sync[confluent]`.

```python
broker = ConfluentKafkaBroker("127.0.0.1:9092")
```

`broker` is the front door and looks at topics, `producer` and `subscription` implement the port of `cqrs_sync.kafka`.
`settings` translates options, the log and errors.
"""

from __future__ import annotations

from cqrs_sync.integrations import requires_extra

with requires_extra("confluent"):
    from cqrs_sync.integrations.confluent.broker import ConfluentKafkaBroker

__all__ = ["ConfluentKafkaBroker"]
