"""Orders over HTTP, with FastAPI and SQLAlchemy: `uvicorn app:app`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pydantic
from attrs import frozen
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
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


class PlaceOrder(pydantic.BaseModel, cqrs.Command[int], frozen=True):
    """The body of a request: FastAPI refuses a wrong one with 422."""

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


engine = create_engine(os.environ.get("DATABASE_URL", "sqlite:///shop.db"))
mediator = bootstrap(requests, events, engine=engine, metadata=Base.metadata, source="shop")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    await run_in_threadpool(Base.metadata.create_all, engine)  # an application with users takes migrations
    yield
    await run_in_threadpool(mediator.close)


app = FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=201)
def place(command: PlaceOrder) -> dict[str, int]:  # `def`, not `async def`: it runs in a thread
    return {"order": mediator.send(command, timeout=20)}
