"""The applications with Flask and FastAPI of docs/examples, and what their pages say about them."""

from __future__ import annotations

import importlib.util
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from tests.integrations.processes import EXAMPLES
from tests.waiting import eventually

KEY = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Import the application of an example, with a database of its own."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'shop.db'}")
    loaded = []

    def import_(example):
        spec = importlib.util.spec_from_file_location(f"{example}_example", EXAMPLES / example / "app.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        loaded.append(module)
        return module

    yield import_
    for module in loaded:
        module.mediator.close()
        module.engine.dispose()


def packed(module):
    """The numbers of the orders that are packed."""
    with module.Session(module.engine) as session:
        return list(session.scalars(sa.select(module.Order.number).where(module.Order.is_packed)))


def test_flask_places_an_order_once(load):
    """A request that is sent again gets the same answer; the order is packed by a durable handler."""
    shop = load("flask_app")
    assert shop.app.test_cli_runner().invoke(args=["create-tables"]).exit_code == 0
    client = shop.app.test_client()
    answers = [client.post("/orders", json={"article": "book"}, headers=KEY) for _ in range(2)]

    assert [(answer.status_code, answer.json) for answer in answers] == [(201, {"order": 1})] * 2
    assert eventually(lambda: packed(shop)) == [1]


def test_flask_refuses_keys_that_are_missing_or_used(load):
    """400 without a key, 422 for a key of another order."""
    shop = load("flask_app")
    shop.Base.metadata.create_all(shop.engine)
    client = shop.app.test_client()
    codes = [
        client.post("/orders", json={"article": article}, headers=headers).status_code
        for article, headers in [("book", {}), ("book", KEY), ("pen", KEY)]
    ]

    assert codes == [400, 201, 422]


def test_handlers_on_the_pool_see_the_request_of_flask(load):
    """Flask keeps it in context variables."""
    shop = load("flask_app")
    shop.Base.metadata.create_all(shop.engine)
    seen = []

    def first(event):
        seen.append((shop.request.path, threading.current_thread().name.startswith("cqrs")))

    def second(event):
        first(event)

    # Two handlers and a deadline: they run on the pool, not in the thread of the view.
    shop.events.bind(shop.OrderPlaced, first)
    shop.events.bind(shop.OrderPlaced, second)
    shop.app.test_client().post("/orders", json={"article": "book"}, headers=KEY)

    assert seen == [("/orders", True)] * 2


def test_fastapi_places_orders_in_threads(load):
    """Endpoints run side by side; a body that is no command is refused; the end of the server closes the mediator."""
    from fastapi.testclient import TestClient  # noqa: PLC0415 -- it is slow to import

    shop = load("fastapi_app")
    meeting = threading.Barrier(2)

    @shop.app.get("/meet")
    def meet_others() -> int:
        return meeting.wait(10)

    with TestClient(shop.app) as client, ThreadPoolExecutor(2) as clients:
        assert sorted(each.json() for each in clients.map(client.get, ["/meet"] * 2)) == [0, 1]
        assert client.post("/orders", json={"article": "book"}).json() == {"order": 1}
        assert client.post("/orders", json={}).status_code == 422
        assert eventually(lambda: packed(shop)) == [1]

    assert shop.mediator.is_closed
