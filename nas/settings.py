"""Settings of any kind: typed and bounded, from defaults, a YAML and ``a.b=value``; an unknown key is an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from nas.errors import NasError
from nas.files import read_yaml
from search_spaces.errors import nearest
from search_spaces.reading import UnreadableError, check_text, parse_yaml

MAX_SEED = 2**32 - 1  # torch's generator on a CPU takes 32 bits: a larger seed repeats a smaller one's draws
MOST = 2**53  # whole numbers beyond are no counts of anything here, and JSON and floats no longer hold them exactly

Kind = TypeVar("Kind", bound=BaseModel)


def check_seed(seed: int) -> int:
    """The seed, if each seed of its range draws something of its own.

    Raises:
        ValueError: if it is negative or over 32 bits.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"must be 0 to {MAX_SEED}, as torch's generators take 32 bits and others repeat one of these")
    return seed


Seed = Annotated[int, AfterValidator(check_seed)]
Threads = Annotated[int, Field(ge=0, le=4096)]


class Mark(str):
    """A word beside a field, by which its settings are taken apart: ``steps: Annotated[int, FREE]``."""


#: How often to save and look, and how and where to run, do not shape a training's losses: it may go on with another.
FREE = Mark("free")


def marked(kind: type[BaseModel], mark: Mark) -> frozenset[str]:
    """The names of the fields beside which a mark stands."""
    return frozenset(name for name, field in kind.model_fields.items() if mark in field.metadata)


class Settings(BaseModel):
    """The base of all settings: no unknown keys, no infinite numbers, no counts beyond reason, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _within_reason(cls, value: Any) -> Any:
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, int) and abs(item) > MOST:
                raise ValueError(f"must be at most {MOST:,}")
            if isinstance(item, str | Path) and (wrong := check_text(str(item))) is not None:
                raise ValueError(f"is a text that {wrong}")
        return value


def parse_as(kind: type[Kind], data: Any, origin: str) -> Kind:
    """Settings of any kind from plain values; ``origin`` stands before the message of an error."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise NasError(f"{origin}: {explained(error, kind)}") from None


def settle(kind: type[Kind], base: Mapping[str, Any], file: Path | None = None, sets: Sequence[str] = ()) -> Kind:
    """Settings of any kind: ``base``, then ``file``, then each ``a.b=value``.

    Raises:
        NasError: on an unknown key or a value of the wrong kind, with its path and the nearest known name.
    """
    merged = dict(base)
    if file is not None:
        merged = merge(merged, read_settings(file))
    for text in sets:
        merged = merge(merged, assignment(text))
    return parse_as(kind, merged, str(file) if file is not None else "config")


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping of a YAML.

    Raises:
        NasError: if it is none.
    """
    if not path.exists():
        raise NasError(f"{path}: no such file; give the path of a YAML to --config")
    data = read_yaml(path)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise NasError(f"{path}: must map keys to values, but is a {type(data).__name__}")
    return data


def assignment(text: str) -> dict[str, Any]:
    """``a.b=value`` as a nested mapping; a value that is no YAML is the text itself."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise NasError(f"--set {text}: must be KEY=VALUE, such as train.clips=4")
    if key.count(".") > 8:
        raise NasError(f"--set {text[:60]}: no key is nested so deep")
    try:
        nested: Any = parse_yaml(value)
    except UnreadableError:
        nested = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return dict(nested)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``base`` with what ``over`` states in its place, mapping by mapping."""
    merged = dict(base)
    for key, value in over.items():
        known = merged.get(key)
        merged[key] = merge(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return merged


def explained(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first problem as one line: path, rule, value, and the nearest known key if it is a misspelt one."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = list(_at(kind, first["loc"][:-1]).model_fields)
        return f"{path}: unknown key.{nearest(str(first['loc'][-1]), known)} Known keys: {', '.join(known)}"
    message = f"{first['msg'].removeprefix('Value error, ')}, but is {_short(first['input'])}"
    return f"{path}: {message}" if path else message


def _at(kind: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel]:
    """The settings that a path of keys leads to."""
    for part in path:
        field = kind.model_fields.get(str(part))
        inner = field.annotation if field is not None else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return kind
        kind = inner
    return kind


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:119]}…"
