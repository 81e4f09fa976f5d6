"""
JSON to bytes and back: with orjson if it is installed (the extra `fast`), else with the standard library.

Both accept and refuse the same values and write the same bytes. Only floats below 0.0001 or from 1e16 on may differ:
JSON has several forms for them, and so have the releases of orjson. `canonical` is for digests and never uses orjson.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from enum import Enum
from json import JSONDecoder, dumps
from json.encoder import encode_basestring
from typing import Any, Final

#: Levels of lists and objects that orjson writes.
_DEEPEST: Final = 254
_SMALLEST: Final = -(2**63)
_LARGEST: Final = 2**64 - 1
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")

_write: Callable[[Any], bytes]
_read: Callable[[bytes | str], Any]


def dump(value: Any) -> bytes:
    """
    Write None, booleans, numbers, texts, and lists, tuples, enums and dicts of them; keys are texts.

    Raises an error for all else: NaN and infinity, whole numbers of more than 64 bits, half a surrogate pair, other
    keys, and a list or dict that contains itself.
    """
    written = _write(value)
    # orjson writes null for NaN.
    if b"null" in written:
        _refuse_nan(value)
    return written


def canonical(value: Any) -> bytes:
    """Write the same values with sorted keys: the same bytes in every process, whatever is installed there."""
    return _text(value, 0, is_sorted=True).encode()


def load(data: bytes | str) -> Any:
    """
    Read JSON, as UTF-8 if it is bytes. A whole number of more than 64 bits becomes a float.

    Raises ValueError for what is not JSON: NaN, infinity, a number that no float can hold, half a surrogate pair.
    """
    return _read(data)


def _refuse_nan(value: Any) -> None:
    pending = [value]
    for each in pending:
        kind = type(each)
        if kind is str or kind is int:
            continue
        if kind is float:
            if not math.isfinite(each):
                raise ValueError(f"JSON has no {each}")
        elif isinstance(each, dict):
            pending += each.values()
        elif isinstance(each, list | tuple):
            pending += each
        elif isinstance(each, Enum):
            pending.append(each.value)


# -- Without orjson.


def _text(value: Any, depth: int, *, is_sorted: bool) -> str:
    write = _SCALARS.get(type(value))
    if write is not None:
        return write(value)
    if isinstance(value, dict):
        pairs = sorted(value.items()) if is_sorted else value.items()
        depth = _deeper(depth)
        return "{" + ",".join([f"{_key(key)}:{_text(each, depth, is_sorted=is_sorted)}" for key, each in pairs]) + "}"
    if isinstance(value, list) or type(value) is tuple:
        depth = _deeper(depth)
        return "[" + ",".join([_text(each, depth, is_sorted=is_sorted) for each in value]) + "]"
    if isinstance(value, Enum):
        return _text(value.value, depth, is_sorted=is_sorted)
    if isinstance(value, str):
        return encode_basestring(value)
    if isinstance(value, int):
        return _int(value)
    raise TypeError(f"JSON has no form for {type(value).__qualname__}")


def _deeper(depth: int) -> int:
    if depth == _DEEPEST:
        raise ValueError(f"lists and objects are nested deeper than {_DEEPEST} levels, or contain themselves")
    return depth + 1


def _key(key: Any) -> str:
    if type(key) is not str:
        raise TypeError(f"a key must be a str, not {key!r:.80}")
    return encode_basestring(key)


def _int(value: int) -> str:
    if not _SMALLEST <= value <= _LARGEST:
        raise ValueError(f"a whole number has more than 64 bits: {value.bit_length()}")
    return int.__repr__(value)


def _float(value: float) -> str:
    _refuse_nan(value)
    return repr(value)


_SCALARS: Final[dict[type, Callable[[Any], str]]] = {
    str: encode_basestring,
    int: _int,
    float: _float,
    bool: {True: "true", False: "false"}.__getitem__,
    type(None): lambda _: "null",
}


def _plain_dump(value: Any) -> bytes:
    return _text(value, 0, is_sorted=False).encode()


def _plain_load(data: bytes | str) -> Any:
    text = data if isinstance(data, str) else data.decode()
    try:
        value = _decoder.decode(text)
        if _SURROGATE.search(text):
            # Raises UnicodeEncodeError, a ValueError, for half a pair.
            dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def _whole(text: str) -> float:
    number = int(text) if len(text) <= len(str(_SMALLEST)) else _LARGEST + 1
    return number if _SMALLEST <= number <= _LARGEST else _real(text)


def _real(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"no float holds {text:.80}")
    return number


def _refuse(constant: str) -> float:
    raise ValueError(f"JSON has no {constant}")


_decoder: Final = JSONDecoder(parse_int=_whole, parse_float=_real, parse_constant=_refuse)

try:
    import orjson
except ImportError:
    _write, _read = _plain_dump, _plain_load
else:
    _write, _read = orjson.dumps, orjson.loads
