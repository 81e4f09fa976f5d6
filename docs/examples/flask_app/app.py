"""Orders over HTTP, with Flask and SQLAlchemy: `flask create-tables`, then `flask run`."""

from __future__ import annotations

import os

from attrs import frozen
from flask import Flask, request
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import cqrs_sync as cqrs
from cqrs_sync.integrations.sqlalchemy import bootstrap


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    number: Mapped[int] = mapped_column(primary_key=True)
    article: Mapped[str]
    is_packed: Mapped[bool] = mapped_column(default=False)


@frozen
class PlaceOrder(cqrs.Command[int]):
    article: str


@frozen
class OrderPlaced(cqrs.DomainEvent, name="order.placed"):
    number: int


requests, events = cqrs.RequestMap(), cqrs.EventMap()


@requests.bind
def place_order(command: PlaceOrder, session: Session) -> int:
    order = Order(article=command.article)
    session.add(order)
    session.flush()
    cqrs.raise_event(OrderPlaced(order.number))
    return order.number


@events.durable("pack")
def pack(event: OrderPlaced, session: Session) -> None:
    session.get_one(Order, event.number).is_packed = True


app = Flask(__name__)
engine = create_engine(os.environ.get("DATABASE_URL", "sqlite:///shop.db"))
mediator = bootstrap(requests, events, engine=engine, metadata=Base.metadata, source="shop")


@app.post("/orders")
def place() -> tuple[dict[str, int | str], int]:
    key = request.headers.get("Idempotency-Key", "").strip('"')
    if not 16 <= len(key) <= 64:
        return {"title": "Idempotency-Key must have 16 to 64 characters"}, 400
    command = PlaceOrder(request.get_json()["article"])
    try:
        number = mediator.send(command, idempotency_key=key, scope=user(), timeout=20)
    except cqrs.IdempotencyKeyConflict:
        return {"title": "Idempotency-Key was used for another order"}, 422
    return {"order": number}, 201


def user() -> str:
    """Return who sends the request, as the proxy in front says it."""
    return str(request.environ.get("REMOTE_USER", "anonymous"))


@app.cli.command("create-tables")
def create_tables() -> None:
    """Create the tables; an application with users takes migrations."""
    Base.metadata.create_all(engine)
