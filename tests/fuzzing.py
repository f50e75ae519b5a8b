"""What strangers, broken disks and typing hands make of files and options, for `test_fuzz.py`."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

WORDS = [
    "",
    " ",
    ".",
    "..",
    "/",
    "~",
    "-",
    "--",
    "=",
    "a=b",
    "0",
    "-1",
    "1.5",
    "1e400",
    "nan",
    "inf",
    "-inf",
    "9" * 30,
    "9" * 5000,
    "18446744073709551616",
    "4294967301",
    "2001-13-45",
    "1_0:x",
    "0b_",
    "true",
    "null",
    "\0",
    "a\0b",
    "x" * 300,
    "x" * 5000,
    "../../../etc/passwd",
    "/etc/passwd",
    "/dev/null",
    "$(touch ran)",
    "; touch ran",
    "`touch ran`",
    "%s%n{0}",
    "[/bold]",
    "\x1b[31m",
    "\u202etxt",
    "\udcff",
    "😀",
    "'\"",
    "&a [*a]",
    "!!python/object/apply:os.system [touch ran]",
    "[" * 100,
    "{a: 1, a: 2}",
    "<script>alert(1)</script>",
    "1e9",
    "2000000000",
]
VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**53,
    2**63,
    10**30,
    0.5,
    -0.5,
    1e308,
    "",
    "x",
    "nan",
    "inf",
    [],
    {},
    [1],
]
VALUES += [[[]], {"a": 1}, "a" * 3000, float("nan"), float("inf"), 2_000_000_000, 8_000_000_000, "\x1b[2J", "é"]
PIECES = [
    b"",
    b",",
    b"\n",
    b'"',
    b"-",
    b"nan",
    b"1e9",
    b"0",
    b": ",
    b"&a ",
    b"*a",
    b"[",
    b"]",
    b"{",
    b"\r",
    b"\xff",
    b"\0",
]
PIECES += [b"\xe2\x80\xa8", b"9" * 400, b"!!binary ", b"!!timestamp 2001-13-45", b"- - ", b"2001-13-45", b"<<: ", b"? "]

words = st.one_of(
    st.sampled_from(WORDS),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
    st.text(max_size=30),
)
values = st.one_of(
    st.sampled_from(VALUES).map(copy.deepcopy),  # what is put in may be altered in turn
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=12),
)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """``data`` with a few bytes replaced, cut out, put in or doubled, or cut off."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.integers(start, min(len(data), start + 40)))
        piece = draw(st.one_of(st.binary(max_size=8), st.sampled_from(PIECES), st.just(data[start:stop] * 2)))
        data = data[:start] + piece + data[stop:]
    return data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 7)) == 0 else data


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested lists and mappings, the outermost first."""
    found = [path]
    if isinstance(value, dict):
        found += [place for key, part in value.items() for place in places(part, (*path, key))]
    elif isinstance(value, list):
        found += [place for index, part in enumerate(value) for place in places(part, (*path, index))]
    return found


@st.composite
def altered(draw: st.DrawFn, value: Any) -> Any:
    """``value`` with one to three of its parts replaced by something else, taken out, or joined by another."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        spots = places(value)[1:]
        if not spots:
            return draw(values)
        path = draw(st.sampled_from(spots))
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        act = draw(st.sampled_from(("replace", "replace", "remove", "add")))
        if act == "replace":
            holder[path[-1]] = draw(values)
        elif act == "remove":
            del holder[path[-1]]
        elif isinstance(holder, dict):
            holder[draw(st.text(st.characters(exclude_categories=("Cs",)), max_size=8))] = draw(values)
        else:
            holder.insert(path[-1], draw(values))
    return value


@st.composite
def texts(draw: st.DrawFn, value: Any, dump: Any) -> bytes:
    """The bytes of a file that holds ``value``: altered, or damaged."""
    if draw(st.booleans()):
        return bytes(draw(damaged(dump(value))))
    return bytes(dump(draw(altered(value))))


def json_bytes(value: Any) -> bytes:
    """JSON, with what Python puts there for infinity."""
    return json.dumps(value).encode()


def yaml_bytes(value: Any) -> bytes:
    """YAML of plain values."""
    import yaml

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode()


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, links as what they say."""
    return {
        str(path.relative_to(folder)): (str(path.readlink()).encode() if path.is_symlink() else path.read_bytes())
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }
