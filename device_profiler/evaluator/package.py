"""A saved ``.mlpackage`` read back: its functions, operations, declared types and stored weights; nothing is run.

The protocol is Apple's, through coremltools' own message classes (``mlmodel/format/Model.proto`` and ``MIL.proto``);
the program that a converter holds in memory is never looked at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_profiler.evaluator.blob import Blob
from device_profiler.evaluator.types import STORED, PackageError, TensorType, unpacked
from search_spaces.errors import nearest

MODEL_PATH = "@model_path/"
IN_BYTES = {"FLOAT16": "<f2", "INT8": "i1", "UINT8": "u1", "INT16": "<i2", "UINT16": "<u2", "UINT32": "<u4"}


@dataclass(frozen=True)
class Constant:
    """A value written into the program: an array of its declared kind, or a text."""

    type: TensorType
    value: Any


@dataclass(frozen=True)
class Operation:
    """One operation: its kind, the names of the values that each input takes, and what it gives."""

    kind: str
    inputs: Mapping[str, tuple[str, ...]]
    outputs: tuple[tuple[str, TensorType], ...]

    @property
    def name(self) -> str:
        """The name of its first output, by which tools show an operation."""
        return self.outputs[0][0] if self.outputs else self.kind

    def reads(self) -> Iterator[str]:
        """Names of the values that it takes."""
        return (one for group in self.inputs.values() for one in group)


@dataclass(frozen=True)
class Function:
    """One function of a package: inputs and outputs by name, constants, and operations in order.

    Constants are the operations ``const``: their values are read from the weight file when asked for.
    """

    name: str
    inputs: tuple[tuple[str, TensorType], ...]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    constants: Mapping[str, Any] = field(repr=False)  # name -> the message of its value
    package: Package = field(repr=False)

    def constant(self, name: str) -> Constant:
        """The constant of a name.

        Raises:
            PackageError: if its value cannot be read.
        """
        return self.package.constant(self.constants[name])

    def declared(self, name: str) -> TensorType:
        """What a constant is declared as; its value is not read."""
        return _type(self.constants[name].type, self.package.path)

    def is_stored(self, name: str) -> bool:
        """Whether it is a constant that lies in the weight file."""
        return name in self.constants and self.constants[name].WhichOneof("value") == "blobFileValue"


class Package:
    """A package's functions, by name.

    Args:
        path: the ``.mlpackage`` folder.

    Raises:
        PackageError: if it is no package, or holds something else than an ML program.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        model = _model_file(self.path)
        self._folder = model.parent
        self._blobs: dict[Path, Blob] = {}
        spec = _parsed(model)
        self.metadata: dict[str, str] = dict(spec.description.metadata.userDefined)
        self.functions = {name: self._function(name, message) for name, message in spec.mlProgram.functions.items()}
        self.default = str(spec.description.defaultFunctionName or "main")

    def function(self, name: str | None = None) -> Function:
        """One function; the default one where no name is given.

        Raises:
            PackageError: naming those that it has.
        """
        wanted = name or self.default
        if wanted not in self.functions:
            raise PackageError(
                f"{self.path}: no function {wanted!r}.{nearest(wanted, self.functions)} "
                f"It has: {', '.join(sorted(self.functions))}."
            )
        return self.functions[wanted]

    def _function(self, name: str, message: Any) -> Function:
        block = message.block_specializations[message.opset]
        constants: dict[str, Any] = {}
        operations = []
        for one in block.operations:
            if one.blocks:
                raise PackageError(f"{self.path}: the operation {one.type!r} branches or loops, which is not evaluated")
            if one.type == "const":
                constants[one.outputs[0].name] = one.attributes["val"]
            else:
                operations.append(self._operation(one, constants))
        for value in constants.values():
            if value.WhichOneof("value") == "blobFileValue":
                self._stored(value)  # a damaged file is told of now, not in the middle of an evaluation
        inputs = tuple((entry.name, _type(entry.type, self.path)) for entry in message.inputs)
        return Function(name, inputs, tuple(block.outputs), tuple(operations), constants, self)

    def _operation(self, message: Any, constants: dict[str, Any]) -> Operation:
        """The operation; values that stand in it, and not in a ``const`` of their own, become constants with names."""
        outputs = tuple((entry.name, _type(entry.type, self.path)) for entry in message.outputs)
        own = message.outputs[0].name if outputs else message.type

        def named(key: str, value: Any) -> str:
            constants[f"{own}.{key}"] = value
            return f"{own}.{key}"

        inputs = {}
        for key, given in message.inputs.items():
            inputs[key] = tuple(
                str(one.name) if one.WhichOneof("binding") == "name" else named(f"{key}.{place}", one.value)
                for place, one in enumerate(given.arguments)
            )
        for key, value in message.attributes.items():  # where the constexpr operations of iOS 16 have theirs
            if key != "name":
                inputs[key] = (named(key, value),)
        return Operation(message.type, inputs, outputs)

    def _stored(self, value: Any) -> tuple[Blob, int]:
        name = str(value.blobFileValue.fileName)
        file = (self._folder / name.removeprefix(MODEL_PATH)).resolve()
        if not name.startswith(MODEL_PATH) or not file.is_relative_to(self._folder.resolve()):
            raise PackageError(f"{self.path}: a weight lies at {name}, outside the package")
        blob = self._blobs.get(file) or self._blobs.setdefault(file, Blob(file))
        declared, offset = _type(value.type, self.path), int(value.blobFileValue.offset)
        blob.locate(offset, declared.kind, math.prod(_fixed(declared)))
        return blob, offset

    def constant(self, value: Any) -> Constant:
        """What a value's message says, read from the weight file where it points there."""
        declared = _type(value.type, self.path)
        if value.WhichOneof("value") == "blobFileValue":
            blob, offset = self._stored(value)
            return Constant(declared, blob.read(offset, declared.kind, _fixed(declared)))
        return Constant(declared, _immediate(value.immediateValue.tensor, declared))


def _model_file(path: Path) -> Path:
    """The file that holds the program, as the package's manifest says."""
    if path.suffix == ".mlmodel" and path.is_file():
        _parsed(path)  # a neural network says so itself
        raise PackageError(f"{path}: a single file cannot hold an ML program's weights; give an .mlpackage")
    manifest = path / "Manifest.json"
    if not manifest.is_file():
        raise PackageError(f"{path}: no Core ML package (a folder with a Manifest.json); give an .mlpackage")
    try:
        described = json.loads(manifest.read_text("utf-8"))
        inside = described["itemInfoEntries"][described["rootModelIdentifier"]]["path"]
        model = (path / "Data" / inside).resolve()
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise PackageError(f"{manifest}: not a Core ML package's manifest ({type(error).__name__}: {error})") from None
    if not model.is_relative_to(path.resolve()) or not model.is_file():
        raise PackageError(f"{manifest}: names the model file {inside}, which is not in the package; export it again")
    return model


def _parsed(model: Path) -> Any:
    from device_profiler.quiet import quiet

    with quiet():
        from coremltools.proto import Model_pb2
        from google.protobuf.message import DecodeError

    spec = Model_pb2.Model()
    try:
        spec.ParseFromString(model.read_bytes())
    except DecodeError:
        raise PackageError(f"{model}: no Core ML model, or a damaged one; export the package again") from None
    kind = spec.WhichOneof("Type")
    if kind is None:
        raise PackageError(f"{model}: no Core ML model, or a damaged one; export the package again")
    if kind != "mlProgram":
        raise PackageError(f"{model}: holds a {kind}, not an ML program; convert it for iOS 15 or later")
    return spec


def _type(message: Any, path: Path) -> TensorType:
    from coremltools.proto import MIL_pb2

    if message.WhichOneof("type") != "tensorType":
        raise PackageError(f"{path}: a value of {message.WhichOneof('type')} is not evaluated, only tensors are")
    tensor = message.tensorType
    kind = str(MIL_pb2.DataType.Name(tensor.dataType))
    if kind != "STRING" and kind not in STORED:
        raise PackageError(f"{path}: values of type {kind} are not evaluated")
    shape = tuple(
        int(size.constant.size) if size.WhichOneof("dimension") == "constant" else None for size in tensor.dimensions
    )
    return TensorType(kind, shape)


def _fixed(declared: TensorType) -> tuple[int, ...]:
    return tuple(int(size or 0) for size in declared.shape)


def _immediate(tensor: Any, declared: TensorType) -> NDArray[Any] | str | list[str]:
    """A value that stands in the program itself; small types as raw bytes, as Apple's protocol has them."""
    field_name = tensor.WhichOneof("value")
    values = getattr(tensor, field_name).values
    shape = _fixed(declared)
    if declared.kind == "STRING":
        return str(values[0]) if not shape else [str(text) for text in values]
    if field_name == "bytes":
        if declared.kind in IN_BYTES:
            return np.frombuffer(values, IN_BYTES[declared.kind]).reshape(shape)
        count = int(np.prod(shape, dtype=np.int64))
        return unpacked(np.frombuffer(values, np.uint8), declared.kind, count).reshape(shape)
    dtype = "float32" if declared.kind == "FLOAT32" else "float64" if declared.kind == "FLOAT64" else None
    whole = {"BOOL": "bool", "INT64": "int64", "UINT32": "int64"}.get(declared.kind, "int32")
    array = np.asarray(list(values), dtype=dtype or whole)
    # One value may stand for a whole tensor.
    return np.full(shape, array[0]) if array.size == 1 else array.reshape(shape)
