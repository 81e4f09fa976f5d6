"""Events to bytes and back, by their stable names: CloudEvents 1.0 with JSON data."""

from __future__ import annotations

import binascii
import datetime as dt
import enum
import os
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, get_type_hints

from cattrs import BaseValidationError, transform_error
from cattrs.cols import is_mapping, is_namedtuple, namedtuple_unstructure_factory
from cattrs.preconf.json import make_converter
from cattrs.v import format_exception

from cqrs_sync import json_codec
from cqrs_sync.broker import IncomingMessage, OutgoingMessage
from cqrs_sync.context import correlation_of, current, current_attributes
from cqrs_sync.errors import ConfigurationError, EventNotSerializable, MalformedMessage, UnknownMessageType
from cqrs_sync.messages import Event, publication_of

#: Characters in the id of a message: stores have no more room.
LONGEST = 255
#: An error names so many fields that do not fit, one by one.
_SHOWN = 5

#: Values of enums that need no other form.
_PLAIN = (str, int, float, bool, type(None))

STRUCTURED = "application/cloudevents+json"


class Serializer(Protocol):
    """Turns events into messages and messages into events."""

    def dump(self, event: Event, /) -> OutgoingMessage:
        """Make the final bytes and attributes. Raises EventNotSerializable and InvalidMessage."""

    def load(self, message: IncomingMessage, types: Mapping[str, type], /) -> tuple[Event, Mapping[str, str]]:
        """
        Make the event of a message, and its CloudEvents attributes.

        `types` are the only classes that may come out, by their stable names.
        Raises MalformedMessage and UnknownMessageType.
        """


class JsonSerializer:
    """
    JSON data in CloudEvents 1.0: binary mode, or structured mode on request.

    It takes attrs classes, dataclasses, pydantic models and msgspec structs, also nested, and the types that cattrs
    knows: dates, UUIDs, enums, collections, and Decimal as a string. `source` is the CloudEvents attribute of that
    name: the service that publishes, as a name or a URI. Receivers tell two messages apart by `source` and id, so each
    service has its own. Bodies above `max_bytes` are refused before they are parsed.

    Raises ConfigurationError for a source that is no text, or is empty or has spaces.
    """

    def __init__(self, *, source: str, structured: bool = False, max_bytes: int = 1_048_576) -> None:
        if not is_source(source):
            raise ConfigurationError(
                f'source must be the name of the service that publishes, without spaces, such as "shop", not {source!r}'
            )
        #: The CloudEvents attribute of that name.
        self.source = source
        self._structured = structured
        self._max_bytes = max_bytes
        self._converter = json_converter()

    def dump(self, event: Event, /) -> OutgoingMessage:
        """Make the final bytes and attributes."""
        event_type = type(event)
        publication = publication_of(event_type)
        topic, name = publication.topic or "", publication.name or ""
        try:
            data = self._converter.unstructure(event)
            body = json_codec.dump(data)
        except Exception as error:
            raise EventNotSerializable(f"{event_type.__qualname__} cannot become JSON: {error}") from error
        key = None if publication.key is None else _key(event, publication.key)
        flow = _flow()
        attributes = {
            "specversion": "1.0",
            "id": uuid7(),
            "source": self.source,
            "type": name,
            "time": dt.datetime.now(dt.UTC).isoformat().replace("+00:00", "Z"),
            "eventversion": publication.version,
            **flow,
        }
        if key is not None:
            attributes["partitionkey"] = key
        if not self._structured:
            return OutgoingMessage(
                id=attributes["id"], topic=topic, type=name, body=body, key=key, attributes=attributes
            )
        envelope = json_codec.dump({**attributes, "datacontenttype": "application/json"})
        envelope = envelope[:-1] + b',"data":' + body + b"}"
        return OutgoingMessage(
            id=attributes["id"], topic=topic, type=name, body=envelope, content_type=STRUCTURED, key=key
        )

    def load(self, message: IncomingMessage, types: Mapping[str, type], /) -> tuple[Event, Mapping[str, str]]:
        """Make the event of a message, and its CloudEvents attributes."""
        attributes, data = self._open(message)
        name = attributes["type"]
        event_type = types.get(name)
        if event_type is None:
            raise UnknownMessageType(f"no event named {name!r:.200} is bound here")
        # In any other value cattrs would find no field, and use the defaults.
        if not isinstance(data, dict):
            raise MalformedMessage(f"the data of {name!r} does not fit {event_type.__qualname__}: it is no object")
        try:
            event: Event = self._converter.structure(data, event_type)
        except Exception as error:
            words = _misfit(error)
            raise MalformedMessage(f"the data of {name!r} does not fit {event_type.__qualname__}: {words}") from error
        return event, attributes

    def _open(self, message: IncomingMessage) -> tuple[Mapping[str, str], Any]:
        if len(message.body) > self._max_bytes:
            raise MalformedMessage(f"the body has {len(message.body)} bytes, {self._max_bytes} are allowed")
        try:
            data = json_codec.load(message.body)
        except ValueError as error:
            kind = f", its content type is {message.content_type!r:.80}" if message.content_type else ""
            raise MalformedMessage(f"the body is not JSON{kind}: {error}") from error
        attributes = message.attributes
        # The usual spelling is compared first: each received message pays for it.
        kind = message.content_type or ""
        if kind != "application/json" and kind.partition(";")[0].strip().lower() == STRUCTURED:
            if not isinstance(data, dict):
                raise MalformedMessage("the body is not a structured CloudEvent")
            attributes = {name: value for name, value in data.items() if isinstance(value, str)}
            data = _structured_data(data)
        _check(attributes)
        return attributes, data


def _misfit(error: Exception) -> str:
    """Return which fields of a message do not fit, and why."""
    if not isinstance(error, BaseValidationError):
        return str(error)
    found = transform_error(error, format_exception=_misfit_at)
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


def _misfit_at(error: BaseException, wanted: type | None) -> str:
    return format_exception(error, wanted) if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"


def _check(attributes: Mapping[str, str]) -> None:
    """Raise MalformedMessage if the attributes are not those of a CloudEvent."""
    get = attributes.get
    name, source = get("id"), get("source")
    # One check for valid messages: each received message pays for it.
    if name and source and get("type") and get("specversion") and is_key(name) and is_key(source, longest=None):
        return
    missing = [name for name in ("specversion", "id", "source", "type") if not get(name)]
    if missing:
        raise MalformedMessage(f"not a CloudEvent: it has no {', '.join(missing)}")
    wrong = "source" if is_key(attributes["id"]) else "id"
    raise MalformedMessage(f"not a CloudEvent: its {wrong} can name nothing: {attributes[wrong]!r:.80}")


def is_key(text: str, *, longest: int | None = LONGEST) -> bool:
    """Return whether every store can keep a text as a name: no NUL, no half of a surrogate pair."""
    if "\0" in text or (longest is not None and len(text) > longest):
        return False
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def is_source(source: object) -> bool:
    """Return whether something can be the `source` of a CloudEvent: the name of a service, or its URI."""
    return isinstance(source, str) and source != "" and source.isprintable() and not any(map(str.isspace, source))


def uuid7() -> str:
    """Make a UUID of version 7 (RFC 9562): it sorts by time, which keeps indexes of stores small."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    return str(uuid.UUID(int=value & ~(0x3 << 62) | 0x2 << 62))


def _flow() -> dict[str, str]:
    scope = current.get()
    if scope is None:
        return {"correlationid": str(uuid.uuid4())}
    correlation_of(scope[1])
    return dict(current_attributes())


def _key(event: Event, field: str) -> str:
    value = getattr(event, field)
    if value is None or (isinstance(value, str) and not value):
        raise EventNotSerializable(f"{type(event).__qualname__}.{field} is its key and must not be empty")
    return str(value)


def _structured_data(envelope: dict[str, Any]) -> Any:
    if "data_base64" not in envelope:
        return envelope.get("data")
    try:
        return json_codec.load(binascii.a2b_base64(envelope["data_base64"], strict_mode=True))
    except (ValueError, TypeError) as error:
        raise MalformedMessage(f"data_base64 is not base64 of JSON: {error}") from error


def json_converter() -> Any:
    """Make a converter between Python values and those of JSON. Back, it returns values of the given type only."""
    import decimal  # noqa: PLC0415 -- a tenth of the import time of this library

    converter = make_converter()
    converter.register_unstructure_hook(decimal.Decimal, str)
    converter.register_structure_hook(decimal.Decimal, lambda value, _: decimal.Decimal(str(value)))
    converter.register_structure_hook(uuid.UUID, lambda value, _: uuid.UUID(value))
    converter.register_structure_hook(type(None), _load_none)
    converter.register_unstructure_hook(uuid.UUID, str)
    converter.register_unstructure_hook(dt.time, dt.time.isoformat)
    converter.register_structure_hook(dt.time, lambda value, _: dt.time.fromisoformat(value))
    converter.register_unstructure_hook_factory(
        is_namedtuple, partial(namedtuple_unstructure_factory, unstructure_to=tuple)
    )
    converter.register_unstructure_hook_factory(is_mapping, lambda cls: _mapping_dumper(cls, converter))
    # What these hold is written by its own type: JSON has no form for a date in an enum.
    converter.register_unstructure_hook_func(_has_any_value, partial(_dump_by_type, converter))
    # pydantic and msgspec are recognised by what their classes carry: core imports neither.
    converter.register_unstructure_hook_factory(_is_pydantic, lambda _: _dump_pydantic)
    converter.register_structure_hook_factory(_is_pydantic, lambda _: _load_pydantic)
    converter.register_unstructure_hook_factory(_is_msgspec, lambda cls: _msgspec_dumper(cls, converter))
    converter.register_structure_hook_factory(_is_msgspec, lambda cls: _msgspec_loader(cls, converter))
    return converter


def _mapping_dumper(cls: Any, converter: Any) -> Any:
    """Make what dumps a mapping: its keys become texts, as JSON wants them."""
    key_type, *_ = getattr(cls, "__args__", None) or [Any]
    dump_key = converter.get_unstructure_hook(key_type)

    def key_text(key: Any) -> str:
        text = dump_key(key)
        return str(text.value if isinstance(text, enum.Enum) else text)

    return converter.gen_unstructure_mapping(cls, key_handler=key_text)


def _has_any_value(cls: Any) -> bool:
    """Tell whether a type is `object`, or an enum whose values are more than texts and numbers."""
    if cls is object:
        return True
    is_enum = isinstance(cls, type) and issubclass(cls, enum.Enum)
    return is_enum and any(type(each.value) not in _PLAIN for each in cls)


def _dump_by_type(converter: Any, value: Any) -> Any:
    if type(value) is object:
        raise TypeError("JSON has no form for object()")
    return converter.unstructure(value.value if isinstance(value, enum.Enum) else value)


def _load_none(data: Any, _: Any) -> None:
    if data is not None:
        raise TypeError(f"null is wanted, not {type(data).__name__}")


def _is_pydantic(cls: Any) -> bool:
    return isinstance(cls, type) and hasattr(cls, "__pydantic_validator__")


def _dump_pydantic(model: Any) -> Any:
    return model.model_dump(mode="json", by_alias=True)


def _load_pydantic(data: Any, cls: Any) -> Any:
    return cls.model_validate(data)


def _is_msgspec(cls: Any) -> bool:
    return isinstance(cls, type) and hasattr(cls, "__struct_fields__")


def _msgspec_dumper(cls: Any, converter: Any) -> Callable[[Any], dict[str, Any]]:
    names = list(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))

    def dump(struct: Any) -> dict[str, Any]:
        return {encoded: converter.unstructure(getattr(struct, name)) for name, encoded in names}

    return dump


def _msgspec_loader(cls: Any, converter: Any) -> Callable[[Any, Any], Any]:
    hints = get_type_hints(cls)
    names = list(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))

    def load(data: Any, _: Any) -> Any:
        if not isinstance(data, dict):
            raise TypeError(f"an object is wanted, not {type(data).__name__}")
        return cls(
            **{name: converter.structure(data[encoded], hints[name]) for name, encoded in names if encoded in data}
        )

    return load
