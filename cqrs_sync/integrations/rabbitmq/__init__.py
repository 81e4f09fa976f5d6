"""
RabbitMQ through pika: install `cqrs-sync[rabbitmq]`.

```python
broker = RabbitMQBroker("amqp://guest:guest@127.0.0.1:5672/")
```

One module per concern: `broker` is the front door, `outlet`, `publisher` and `subscription`
are what it opens, `link` is the connection and the thread under both of them; `places` and
`topology` know what a group has on the server, `inquiry` asks for it. `frames`, `copies`,
`settings` and `failures` translate messages, URLs and errors.
"""

from __future__ import annotations

from cqrs_sync.integrations import needs

with needs("rabbitmq"):
    from cqrs_sync.integrations.rabbitmq.broker import RabbitMQBroker

__all__ = ["RabbitMQBroker"]
