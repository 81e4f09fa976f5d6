"""
RabbitMQ through pika: install `cqrs-sync[rabbitmq]`.

```python
broker = RabbitMQBroker("amqp://guest:guest@127.0.0.1:5672/")
```

`broker` is the front door. `publisher` and `subscription` each have a connection thread, from `connection`.
`topology` knows the queues of a group. `amqp`, `messages` and `errors` translate frames, messages and errors.
"""

from __future__ import annotations

from cqrs_sync.integrations import requires_extra

with requires_extra("rabbitmq"):
    from cqrs_sync.integrations.rabbitmq.broker import RabbitMQBroker

__all__ = ["RabbitMQBroker"]
