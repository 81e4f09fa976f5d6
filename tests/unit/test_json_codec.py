"""Promises about JSON with orjson and without it: the same values, bytes and refusals."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import importlib.util
import json
import subprocess
import sys
import uuid
from collections import namedtuple

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqrs_sync import json_codec
from cqrs_sync.serializer import json_converter
from tests.source import ROOT


def codec_without_orjson():
    """Load the module a second time, as it is where orjson is not installed."""
    spec = importlib.util.spec_from_file_location("json_codec_without_orjson", json_codec.__file__)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "orjson", None)
        spec.loader.exec_module(module)
    return module


plain = codec_without_orjson()
try:
    import orjson
except ImportError:
    orjson = None
needs_orjson = pytest.mark.skipif(orjson is None, reason="orjson is not installed: pip install 'orjson>=3.10,<4'")


@pytest.fixture(params=["installed", "plain"])
def codec(request):
    return json_codec if request.param == "installed" else plain


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, "two")


class Level(enum.IntEnum):
    LOW = 1


class Known(enum.Enum):
    ID = uuid.UUID(int=7)
    DAY = dt.date(2026, 11, 30)
    MOMENT = dt.datetime(2026, 11, 30, 4, 5, 6, 7, tzinfo=dt.UTC)
    PAIR = (dt.time(1, 2), decimal.Decimal("1.50"))


class Text(str):
    __slots__ = ()


Named = namedtuple("Named", "x")  # noqa: PYI024 -- one without types

texts = st.text(st.characters(exclude_categories=["Cs"]))
# JSON has one form for these.
floats = st.floats(0.0001, 1e15) | st.floats(-1e15, -0.0001) | st.just(0.0)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | floats | texts | st.sampled_from([*Colour, *Level])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(texts, inner), max_leaves=20
)


@needs_orjson
@given(values)
def test_both_write_the_same_bytes(value):
    assert json_codec.dump(value) == plain.dump(value)


@needs_orjson
def test_both_write_each_character_alike():
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000)]))

    assert json_codec.dump(text) == plain.dump(text)
    assert text == plain.load(json_codec.dump(text))


@needs_orjson
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_both_read_each_other_s_floats(value):
    assert [value, value] == [json_codec.load(plain.dump(value)), plain.load(json_codec.dump(value))]


@needs_orjson
@given(
    st.binary()
    | texts.map(str.encode)
    | st.text('0123456789-+.eE "\\u[]{}:,dDfFtrulsn', max_size=12).map(str.encode)
    | values.map(plain.dump)
)
def test_both_read_and_refuse_the_same_bytes(data):
    def read(codec):
        try:
            return repr(codec.load(data))
        except ValueError:
            return "refused"

    assert read(json_codec) == read(plain)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"NaN", b"-Infinity", b"[1,]", b"01", b"1.", b"+1", b"1e400", b"1" * 400, b'"\x1f"', b'"\\x"',
        b'"\\ud800"', b'{"\\udfff": 1}', b'["\\ude00\\ud83d"]', b"\xff", b"\xef\xbb\xbf1", b"\x001", b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=lambda data: repr(data)[:20],
)  # fmt: skip
def test_what_is_not_json_is_refused(codec, data):
    with pytest.raises(ValueError, match=r"\S"):
        codec.load(data)


def test_numbers_are_read_as_far_as_they_go(codec):
    read = codec.load(b"[-0, -0.0, 18446744073709551615, 18446744073709551616, -9223372036854775809, 1e-400]")

    assert "[0, -0.0, 18446744073709551615, 1.8446744073709552e+19, -9.223372036854776e+18, 0.0]" == repr(read)


def circle():
    made = []
    made.append(made)
    return made


def nested(levels):
    made = 1
    for level in range(levels):
        made = [made] if level % 2 else {"in": made}
    return made


@pytest.mark.parametrize(
    "value",
    [
        float("nan"), [1.0, {"a": (float("inf"),)}], 2**64, -(2**63) - 1, 10**400, "\ud800", {"\udfff": 1}, {1: 2},
        {None: 1}, {Text("x"): 1}, b"bytes", {1, 2}, object(), Named(1), circle(), nested(255),
    ],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_what_json_has_no_form_for_is_refused(codec, value):
    with pytest.raises((TypeError, ValueError, RecursionError)):
        codec.dump(value)
    with pytest.raises((TypeError, ValueError, RecursionError)):
        codec.canonical(value)


def test_what_json_has_is_written(codec):
    value = {"b": [True, None, Level.LOW, Colour.PAIR, Text("x")], "a": (1.5, "é\n", {})}

    assert '{"b":[true,null,1,[1,"two"],"x"],"a":[1.5,"é\\n",{}]}' == codec.dump(value).decode()
    assert '{"a":[1.5,"é\\n",{}],"b":[true,null,1,[1,"two"],"x"]}' == codec.canonical(value).decode()
    assert codec.dump(nested(254)) == json.dumps(nested(254), separators=(",", ":")).encode()


@given(st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False)))
def test_the_canonical_form_depends_on_nothing_but_the_value(value):
    """Neither on the order of keys, nor on orjson: releases of it write floats differently."""
    shuffled = dict(reversed(value.items()))

    assert json_codec.canonical(value) == plain.canonical(shuffled)


@attrs.frozen
class Held:
    value: object
    known: Known


@pytest.mark.parametrize("known", Known)
def test_values_that_orjson_alone_has_a_form_for_are_texts_before_they_reach_it(codec, known):
    """
    Enums of dates, and what stands in a field of the type `object`, are written alike with and without orjson.
    """
    value = known.value[0] if isinstance(known.value, tuple) else known.value
    written = codec.dump(json_converter().unstructure(Held(value, known)))
    text = str(value) if isinstance(value, uuid.UUID) else value.isoformat()

    expected = {"value": text, "known": [text, "1.50"] if known is Known.PAIR else text}
    assert expected == codec.load(written)


def test_the_promises_of_messages_and_receipts_hold_without_orjson():
    """Their tests run once more, without servers, in a process that cannot import it."""
    pytest.importorskip("sqlalchemy", reason="the inbox is tested on databases")
    program = "import sys; sys.modules['orjson'] = None; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    options = ["-q", "-p", "no:cacheprovider", "--hypothesis-profile", "few", "-k", "not mariadb and not postgresql"]
    done = subprocess.run(
        [sys.executable, "-c", program, *options, "tests/unit/test_serializer.py", "tests/promises/test_b6_inbox.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert 0 == done.returncode, done.stdout + done.stderr
