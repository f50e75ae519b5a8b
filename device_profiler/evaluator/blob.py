"""Weights in a package's ``weight.bin``: Apple's MIL blob file, mapped into memory and checked before it is read.

The file is a 64-byte header and, for each tensor, 64 bytes of description followed, at the offset that they state, by
its values. Source: coremltools, ``mlmodel/src/MILBlob/Blob/StorageFormat.hpp`` (version 2 of the format).
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_profiler.evaluator.types import BITS, PackageError, unpacked

ALIGNMENT = 64
VERSION = 2
SENTINEL = 0xDEADBEEF
# The format's own numbers of the types, by the name that the program declares.
KINDS = {
    **{"FLOAT16": 1, "FLOAT32": 2, "UINT8": 3, "INT8": 4, "INT16": 6, "UINT16": 7, "INT4": 8, "UINT1": 9},
    **{"UINT2": 10, "UINT4": 11, "UINT3": 12, "UINT6": 13, "INT32": 14, "UINT32": 15},
}
WHOLE = {
    **{"FLOAT16": "<f2", "FLOAT32": "<f4", "UINT8": "u1", "INT8": "i1", "INT16": "<i2", "UINT16": "<u2"},
    **{"INT32": "<i4", "UINT32": "<u4"},
}


class Blob:
    """One weight file.

    Raises:
        PackageError: if it is missing, no such file, or of another version of the format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file() or path.stat().st_size < ALIGNMENT:
            raise PackageError(f"{path}: the weight file is missing or cut short; copy or export the package again")
        self.bytes: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
        _, version = struct.unpack_from("<II", self.bytes[:8].tobytes())
        if version != VERSION:
            raise PackageError(f"{path}: version {version} of the weight file is not known, only {VERSION} is")

    def read(self, offset: int, kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """The tensor described at ``offset``, of the declared kind and shape.

        Raises:
            PackageError: as ``locate``.
        """
        count = math.prod(shape)
        raw = self.locate(offset, kind, count)
        return (raw.view(WHOLE[kind]) if kind in WHOLE else unpacked(raw, kind, count)).reshape(shape)

    def locate(self, offset: int, kind: str, count: int) -> NDArray[np.uint8]:
        """The bytes of the tensor of ``count`` values that is described at ``offset``.

        Raises:
            PackageError: if the file ends before the tensor does, or describes another tensor.
        """
        sentinel, number, size, at = struct.unpack("<IIQQ", self._bytes(offset, 24).tobytes())
        needed = (count * BITS[kind] + 7) // 8
        if sentinel != SENTINEL or number != KINDS.get(kind) or size < needed:
            raise PackageError(
                f"{self.path}: no {kind} tensor of {needed} bytes is described at byte {offset}; the weight file is "
                "damaged or of another package"
            )
        return self._bytes(at, needed)

    def _bytes(self, start: int, size: int) -> NDArray[np.uint8]:
        if start + size > self.bytes.size:
            raise PackageError(
                f"{self.path}: ends at byte {self.bytes.size}, a weight reaches to byte {start + size}; the file was "
                "cut short: copy or export the package again"
            )
        return self.bytes[start : start + size]
