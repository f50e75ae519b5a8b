"""What people and strangers hand us, read as plain data within bounds: YAML and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

MAX_TEXT = 1_000_000  # characters of a YAML: ours have some thousands, and a parser in Python takes a second for these
MAX_DEPTH = 32
MAX_VALUES = 20_000  # once aliases are written out: some hundred bytes of them unfold to gigabytes
MAX_BITS = 64

_TAG = "tag:yaml.org,2002:"
_KINDS = ("null", "bool", "int", "float", "str", "seq", "map")


class UnreadableError(ValueError):
    """The text is no plain data within the bounds; the message says why, in one line."""


def read_bytes(path: str | Path, most: int) -> bytes:
    """A file of ``most`` bytes or fewer.

    Raises:
        UnreadableError: if it cannot be read, or is larger.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise UnreadableError(f"cannot be read ({error.strerror or error})") from None
    if len(data) > most:
        raise UnreadableError(f"is larger than {most:,} bytes, which no file of ours is")
    return data


def read_text(path: str | Path, most: int = MAX_TEXT) -> str:
    """A text file of ``most`` bytes or fewer.

    Raises:
        UnreadableError: if it cannot be read, is larger, or is no UTF-8.
    """
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"is no text (byte {error.start} is no UTF-8)") from None


def parse_yaml(text: str) -> Any:
    """The value of a YAML text: None, truth values, numbers, texts, lists, and mappings with text keys.

    Dates stay text. Refused are tags of other kinds, a key given twice, nesting over ``MAX_DEPTH``, over ``MAX_VALUES``
    values with aliases written out, numbers over ``MAX_BITS`` bits, and texts that no file or path can hold.

    Raises:
        UnreadableError: in one line, with the line of the text where it is known.
    """
    if len(text) > MAX_TEXT:
        raise UnreadableError(f"is longer than {MAX_TEXT:,} characters, which no file of ours is")
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except (yaml.YAMLError, RecursionError) as error:
        raise UnreadableError(f"is no YAML ({_reason(error)})") from None
    finally:
        if loader is not None:
            loader.dispose()


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        UnreadableError: on anything else, on nesting beyond Python's stack, and on numbers of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise UnreadableError("is no JSON of ours (nested too deep)") from None
    except ValueError as error:  # bytes that are no UTF-8 among them
        raise UnreadableError(f"is no JSON ({' '.join(str(error).split())})") from None


def check_text(value: str) -> str | None:
    """What keeps a text from being a name, a path or a line of a file; None if nothing does."""
    if "\0" in value:
        return "holds a NUL character"
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        return "holds half a character (a surrogate)"
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deep"
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if not problem:
        return " ".join(str(error).split())[:200]
    return problem + (f", line {mark.line + 1}" if mark is not None else "")


class _Loader(yaml.SafeLoader):
    """``SafeLoader`` within the bounds of ``parse_yaml``."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            self._count(node, {})
        return node

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._wrong(f"nested more than {MAX_DEPTH} deep", self.peek_event())
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def _count(self, node: yaml.Node, known: dict[int, int | None]) -> int:
        """Values below a node with its aliases written out; an alias of what holds it is refused."""
        if id(node) in known:
            count = known[id(node)]
            if count is None:
                raise self._wrong("an alias of what it stands in", node)
            return count
        known[id(node)] = None
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        count = 1 + sum(self._count(child, known) for child in children)
        if count > MAX_VALUES:
            raise self._wrong(f"over {MAX_VALUES:,} values with its aliases written out", node)
        known[id(node)] = count
        return count

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):  # of its scalar constructors
            raise self._wrong(f"{node.value!r:.60} is no {node.tag.removeprefix(_TAG)}", node) from None

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        wrong = check_text(value)
        if wrong is not None:
            raise self._wrong(f"a text {wrong}", node)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():  # else the base class refuses it
            if key.tag == f"{_TAG}merge":
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag != f"{_TAG}str":
                raise self._wrong("a key that is no plain text; quote it", key)
            if key.value in seen:
                raise self._wrong(f"key {key.value!r:.60} stands there twice; keep one", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        if len(text) > MAX_BITS + 2 or abs(value := super().construct_yaml_int(node)) >= 2**MAX_BITS:
            raise self._wrong(f"a whole number over {MAX_BITS} bits", node)
        return int(value)

    def _wrong(self, problem: str, where: Any) -> yaml.YAMLError:
        return yaml.constructor.ConstructorError(None, None, problem, where.start_mark)

    def unknown_tag(self, node: yaml.Node) -> Any:
        """A tag that names none of the plain kinds: nothing is made of it."""
        raise self._wrong(f"the tag {node.tag!r:.60}; plain values need none", node)


_Loader.yaml_constructors = {
    **{f"{_TAG}{kind}": getattr(_Loader, f"construct_yaml_{kind}") for kind in _KINDS},
    None: _Loader.unknown_tag,
}
_Loader.yaml_multi_constructors = {}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
