"""What lets a handler run once: innermost of the middlewares around it, so that the receipt is in its transaction."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, ForwardRef, TypeVar, get_args, get_origin, get_type_hints

import attrs
import orjson

from cqrs_sync.errors import AlreadyUsed, ConfigurationError, SerializationError
from cqrs_sync.inbox import Inbox
from cqrs_sync.messages import Request
from cqrs_sync.middleware import CallNext
from cqrs_sync.serializer import json_converter

_key: ContextVar[str] = ContextVar("cqrs_sync.once")
_DIGEST = 16


@contextmanager
def once_for(key: str) -> Iterator[None]:
    """Let the guards of what is called in this block ask for this key."""
    token = _key.set(key)
    try:
        yield
    finally:
        _key.reset(token)


class EventGuard:
    """Lets a handler of events run where the inbox does not know that it has, for the key of `once_for`."""

    def __init__(self, inbox: Inbox, handler: str) -> None:
        self._inbox = inbox
        self._handler = handler

    def __call__(self, event: Any, call_next: CallNext, /) -> None:
        """Run it, or leave it at that."""
        with self._inbox.once(_key.get(), self._handler) as receipt:
            if receipt.first:
                call_next(event)


class RequestGuard:
    """
    Lets the handler of a request run once for the key of `once_for`, and answers from the inbox after that.

    A digest of the request is kept with the response. Raises AlreadyUsed where the key came with another request.
    """

    def __init__(self, inbox: Inbox, request_type: type) -> None:
        self._inbox = inbox
        self._name = f"{request_type.__module__}:{request_type.__qualname__}"
        self._title = request_type.__qualname__
        self._answer = _answer_of(request_type)

    def __call__(self, request: Any, call_next: CallNext, /) -> Any:
        """Run it, or return what it has answered."""
        key = _key.get()
        digest = hashlib.blake2b(self._dump(request, "is"), digest_size=_DIGEST).digest()
        with self._inbox.once(key, self._name) as receipt:
            if receipt.first:
                response = call_next(request)
                receipt.keep(digest + self._answered(response))
                return response
            kept = receipt.result
            if kept is None:
                raise ConfigurationError(f"the inbox keeps no results, so it cannot answer {self._title} again")
            if not kept.startswith(digest):
                raise AlreadyUsed(
                    f"the key {key!r:.80} was used for another {self._title}: a request that differs needs a new key"
                )
            return self._load(kept[_DIGEST:])

    def _answered(self, response: Any) -> bytes:
        answer = self._dump(response, "was answered with")
        try:
            # Who sends it again is not to find out that this cannot be read.
            self._load(answer)
        except Exception as error:
            raise SerializationError(
                f"{self._title} was answered with {type(response).__qualname__}, which cannot be read as the "
                f"{getattr(self._answer, '__qualname__', self._answer)} that it declares: {error}"
            ) from error
        return answer

    def _dump(self, value: Any, what: str) -> bytes:
        try:
            return orjson.dumps(_converter().unstructure(value), option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SORT_KEYS)
        except Exception as error:
            raise SerializationError(
                f"{self._title} {what} {type(value).__qualname__}, which cannot become JSON, so the inbox cannot keep "
                f"it: make it of what JSON can say, or send it without `once`: {error}"
            ) from error

    def _load(self, answer: bytes) -> Any:
        return _converter().structure(orjson.loads(answer), self._answer)


@cache
def _converter() -> Any:
    return json_converter()


def _answer_of(request_type: type) -> Any:
    """Return what a request is answered with, as its class declares it."""
    for base in request_type.__mro__:
        for generic in base.__dict__.get("__orig_bases__", ()):
            origin = get_origin(generic)
            if isinstance(origin, type) and issubclass(origin, Request):
                answer = get_args(generic)[0]
                if isinstance(answer, TypeVar):
                    continue
                return _resolved(answer, base)
    raise ConfigurationError(
        f"{request_type.__qualname__} does not say what it is answered with, so the inbox cannot give that answer "
        f"again: write `class {request_type.__qualname__}(cqrs.Command[...])`, or send it without `once`"
    )


@attrs.frozen
class _Annotated:
    """Something whose annotations `get_type_hints` reads."""

    __annotations__: dict[str, Any]


def _resolved(answer: Any, base: type) -> Any:
    """Look up a class that is named before it is there."""
    if not isinstance(answer, ForwardRef):
        return answer
    module = vars(sys.modules[base.__module__])
    return get_type_hints(_Annotated({"answer": answer}), globalns=module)["answer"]
