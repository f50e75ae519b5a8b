"""A variant: a block with every parameter chosen."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces.errors import SpaceError

_LABEL = re.compile(r"(?P<block>[A-Za-z_]\w*)(\((?P<params>[^()]*)\))?")
_PARAM = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*(-?\d{1,9})\s*")


@dataclass(frozen=True, order=True)
class Variant:
    """A block's name and its parameters, sorted by name, so that equal variants are equal however they were written.

    Parameters are integers: that is what a table key, a YAML file and a device can all spell the same way.
    """

    block: str
    params: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", tuple(sorted((str(name), value) for name, value in self.params)))
        for name, value in self.params:
            if isinstance(value, bool) or not isinstance(value, int):
                raise SpaceError(f"{self.block}: parameters are integers, but {name}={value!r}; write a whole number")

    @classmethod
    def of(cls, block: str, /, **params: int) -> "Variant":
        """``Variant.of("Conv3D", kernel_size=3)``."""
        return cls(block, tuple(params.items()))

    @property
    def label(self) -> str:
        """``Conv3D(kernel_size=3)``; the bare block name if it has no parameters."""
        inside = ",".join(f"{name}={value}" for name, value in self.params)
        return f"{self.block}({inside})" if inside else self.block

    @classmethod
    def parse(cls, label: str) -> "Variant":
        """The inverse of ``label``; ``Conv3D`` alone is a variant without parameters.

        Raises:
            SpaceError: if the text is not ``Block`` or ``Block(name=integer,...)``.
        """
        match = _LABEL.fullmatch(label.strip()) if isinstance(label, str) else None
        parts = [part for part in (match["params"] or "").split(",") if part.strip()] if match else []
        params = [_PARAM.fullmatch(part) for part in parts]
        if match is None or not all(params):
            raise SpaceError(f"cannot read variant {label!r:.120}; write it like Conv3D(kernel_size=3)")
        pairs = tuple((found[1], int(found[2])) for found in params if found)
        if len({name for name, _ in pairs}) < len(pairs):
            raise SpaceError(f"variant {label!r} gives a parameter twice; keep one")
        return cls(match["block"], pairs)

    def to_json(self) -> dict[str, Any]:
        """``{"block": ..., "params": {...}}``."""
        return {"block": self.block, "params": dict(self.params)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Variant":
        """The inverse of ``to_json``."""
        return cls(data["block"], tuple(data.get("params", {}).items()))

    def __str__(self) -> str:
        return self.label
