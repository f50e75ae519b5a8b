"""Element types of a Core ML program: their bits, how values of few bits are packed, and what torch keeps them in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from device_profiler.errors import ProfileError

LARGEST_FLOAT16 = 65504.0
BITS = {
    **{"FLOAT16": 16, "FLOAT32": 32, "FLOAT64": 64, "INT4": 4, "INT8": 8, "INT16": 16, "INT32": 32, "INT64": 64},
    **{"UINT1": 1, "UINT2": 2, "UINT3": 3, "UINT4": 4, "UINT6": 6, "UINT8": 8, "UINT16": 16, "UINT32": 32},
    "BOOL": 8,
}
# torch lacks arithmetic on most unsigned types; each is kept in a signed one that holds all of its values.
STORED = {
    **{"FLOAT16": torch.float16, "FLOAT32": torch.float32, "FLOAT64": torch.float64, "BOOL": torch.bool},
    **{"INT4": torch.int8, "INT8": torch.int8, "INT16": torch.int16, "INT32": torch.int32, "INT64": torch.int64},
    **{"UINT1": torch.int16, "UINT2": torch.int16, "UINT3": torch.int16, "UINT4": torch.int16, "UINT6": torch.int16},
    **{"UINT8": torch.int16, "UINT16": torch.int32, "UINT32": torch.int64},
}
# What the operation `cast` calls them.
CAST_NAMES = {
    **{"fp16": "FLOAT16", "fp32": "FLOAT32", "fp64": "FLOAT64", "bool": "BOOL", "int8": "INT8", "int16": "INT16"},
    **{"int32": "INT32", "int64": "INT64", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32"},
}


class PackageError(ProfileError):
    """A package that cannot be read or evaluated. One line, with the remedy."""


class UnknownOperation(PackageError):
    """An operation that is not in the table of those that can be evaluated."""


@dataclass(frozen=True)
class TensorType:
    """What a program declares of a value: the element type by its name in Apple's protocol, and the shape.

    ``None`` in a shape is a size that is known only when the program runs.
    """

    kind: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.kind.lower()} {'x'.join('?' if size is None else str(size) for size in self.shape) or 'scalar'}"


def unpacked(raw: NDArray[np.uint8], kind: str, count: int) -> NDArray[Any]:
    """Values of fewer than eight bits, packed one after the other from the lowest bit of each byte on."""
    bits = BITS[kind]
    each = np.unpackbits(raw, bitorder="little")[: count * bits].reshape(count, bits)
    values = (each.astype(np.uint8) << np.arange(bits, dtype=np.uint8)).sum(1, dtype=np.uint8)
    if not kind.startswith("INT"):
        return values
    return ((values.astype(np.int8) ^ (1 << (bits - 1))) - (1 << (bits - 1))).astype(np.int8)


def as_tensor(array: NDArray[Any], kind: str) -> torch.Tensor:
    """The values as torch keeps their kind; a copy only where the type changes."""
    wanted = STORED[kind]
    if kind.startswith("UINT"):
        array = array.astype(str(wanted).removeprefix("torch."))
    if not array.flags.writeable:
        array = array.copy()
    return torch.from_numpy(np.ascontiguousarray(array)).to(wanted)
