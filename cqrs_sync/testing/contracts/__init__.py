"""
The promises of each socket as a test class, a module for each socket.

```python
class TestMyBroker(BrokerContract):
    @pytest.fixture
    def broker(self):
        broker = MyBroker(...)
        yield broker
        broker.close()

    @pytest.fixture
    def topic(self):
        return "a-topic-that-exists"
```

A subclass gives the fixtures that its contract asks for. If a backend cannot do something, its `features` say so.
"""
