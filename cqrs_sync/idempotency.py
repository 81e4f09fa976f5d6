"""Run a handler once for each idempotency key."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, ForwardRef, TypeVar, get_args, get_origin, get_type_hints

import orjson

from cqrs_sync.errors import AlreadyUsed, ConfigurationError, SerializationError
from cqrs_sync.inbox import Inbox
from cqrs_sync.messages import Request
from cqrs_sync.middleware import CallNext
from cqrs_sync.serializer import json_converter

_key: ContextVar[str] = ContextVar("cqrs_sync.once")
_DIGEST = 16


@contextmanager
def idempotency_key(key: str) -> Iterator[None]:
    """Give the idempotent handlers that are called in this block their key."""
    token = _key.set(key)
    try:
        yield
    finally:
        _key.reset(token)


class IdempotentEvent:
    """
    Skips an event handler that has a receipt for the `idempotency_key`.

    The innermost middleware, so that the receipt is in the handler's own transaction.
    """

    def __init__(self, inbox: Inbox, handler: str) -> None:
        self._inbox = inbox
        self._handler = handler

    def __call__(self, event: Any, call_next: CallNext, /) -> None:
        """Run the handler, or skip it."""
        with self._inbox.once(_key.get(), self._handler) as receipt:
            if receipt.first:
                call_next(event)


class IdempotentRequest:
    """
    Runs the handler of a request once for the `idempotency_key`, and answers from the inbox after that.

    The innermost middleware, as for events. It stores a digest of the request with the response, and raises
    AlreadyUsed if the key comes with another request.
    """

    def __init__(self, inbox: Inbox, request_type: type) -> None:
        import hashlib  # noqa: PLC0415 -- loading OpenSSL is a tenth of the time that importing the package may take

        self._inbox = inbox
        self._name = f"{request_type.__module__}:{request_type.__qualname__}"
        self._request = request_type.__qualname__
        self._response_type = _response_type_of(request_type)
        self._hash = partial(hashlib.blake2b, digest_size=_DIGEST)

    def __call__(self, request: Any, call_next: CallNext, /) -> Any:
        """Run the handler, or return its response of the first time."""
        key = _key.get()
        digest = self._hash(self._dump(request, "the request")).digest()
        with self._inbox.once(key, self._name) as receipt:
            if receipt.first:
                response = call_next(request)
                receipt.keep(digest + self._response_bytes(response))
                return response
            kept = receipt.result
            if kept is None:
                raise ConfigurationError(
                    f"the inbox stores no responses, so it cannot answer {self._request} a second time"
                )
            if not kept.startswith(digest):
                raise AlreadyUsed(
                    f"the key {key!r:.80} was used for another {self._request}, with other content: "
                    "use a new key for another request"
                )
            return self._load(kept[_DIGEST:])

    def _response_bytes(self, response: Any) -> bytes:
        answer = self._dump(response, "the response")
        try:
            # Found out now, while the handler can still fail, and not by a later send.
            self._load(answer)
        except Exception as error:
            raise SerializationError(
                f"{self._request} returned {type(response).__qualname__}, which cannot be read back as the "
                f"{getattr(self._response_type, '__qualname__', self._response_type)} that it declares: {error}"
            ) from error
        return answer

    def _dump(self, value: Any, what: str) -> bytes:
        try:
            return orjson.dumps(_converter().unstructure(value), option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SORT_KEYS)
        except Exception as error:
            raise SerializationError(
                f"{what} of {self._request}, {type(value).__qualname__}, cannot become JSON, so the inbox cannot keep "
                f"it: use only types that JSON has, or send it without `once`: {error}"
            ) from error

    def _load(self, answer: bytes) -> Any:
        return _converter().structure(orjson.loads(answer), self._response_type)


@cache
def _converter() -> Any:
    return json_converter()


def _response_type_of(request_type: type) -> Any:
    """Return the type of the response, as the class of the request declares it."""
    for base in request_type.__mro__:
        for generic in base.__dict__.get("__orig_bases__", ()):
            origin = get_origin(generic)
            if isinstance(origin, type) and issubclass(origin, Request):
                answer = get_args(generic)[0]
                if isinstance(answer, TypeVar):
                    continue
                return _resolved(answer, base)
    raise ConfigurationError(
        f"{request_type.__qualname__} does not declare the type of its response, so the inbox cannot return it a "
        f"second time: write `class {request_type.__qualname__}(cqrs.Command[...])`, or send it without `once`"
    )


def _resolved(answer: Any, base: type) -> Any:
    """Return the class of a forward reference."""
    if not isinstance(answer, ForwardRef):
        return answer
    module = vars(sys.modules[base.__module__])
    return get_type_hints(SimpleNamespace(__annotations__={"answer": answer}), globalns=module)["answer"]
