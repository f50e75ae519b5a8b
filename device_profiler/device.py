"""A device: the chip, runtime, compute unit and precision that a table is about, read from one YAML."""

from __future__ import annotations

import reprlib
import unicodedata
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from device_profiler.errors import ProfileError
from search_spaces.errors import nearest, unknown
from search_spaces.reading import UnreadableError, parse_yaml

MILLION = 1e6
Megabytes = Annotated[float, Field(gt=0, le=1e9)]
Seconds = Annotated[float, Field(gt=0, le=MILLION)]
Rate = Annotated[float, Field(ge=1e-6, le=MILLION)]  # TFLOP/s or GB/s: wider than any chip, far from overflow
Microseconds = Annotated[float, Field(ge=0, le=MILLION)]
BIDI = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # turn text around


def _one_line(text: str) -> str:
    """A text that goes into a line: printable, so that nobody's file speaks to a terminal.

    Raises:
        ValueError: if it holds a control character, a line break or a mark that turns text around.
    """
    bad = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in BIDI), None)
    if bad is not None:
        raise ValueError(f"holds the control character U+{ord(bad):04X}; write plain text on one line")
    return text


def _lines(text: str) -> str:
    """A text that may be wrapped in its file, as one line."""
    return _one_line(" ".join(text.split()))


def _file_name(text: str) -> str:
    if not text or len(text) > 100 or text.startswith(".") or set(text) & set("/\\"):
        raise ValueError("names a folder of its table, so it is 1 to 100 characters without slashes or a leading dot")
    unseen = next((c for c in _one_line(text) if not c.isprintable()), None)
    if unseen is not None:
        raise ValueError(
            f"names a folder of its table and holds U+{ord(unseen):04X}, which cannot be read; leave it out"
        )
    return text


Line = Annotated[str, AfterValidator(_one_line)]
Prose = Annotated[str, AfterValidator(_lines)]
FileName = Annotated[str, AfterValidator(_file_name)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class Roofline(_Strict):
    """The ceilings of the roofline model (Williams, Waterman, Patterson 2009) and where they come from.

    Args:
        peak_tflops: of the chip, at the device's precision; a multiply and an add are two operations.
        efficiency: the share of that peak that dense kernels are taken to reach.
        conv_tflops, matmul_tflops: what convolutions and matrix products were measured to reach, where somebody has;
            they stand in place of peak times efficiency.
        fp32_tflops, tf32_tflops: the peak at other precisions than the device's own, for estimates of trainings.
        bandwidth_gb_s: of the memory.
        overhead_us: what one operation costs at least.
        dispatch_us: what handing a program to the unit costs: once for each evaluation of a network, however many
            layers it has, so rows of whole networks bear it and rows of layers do not.
        source: whose figures these are.
    """

    peak_tflops: Rate
    bandwidth_gb_s: Rate
    efficiency: Annotated[float, Field(ge=1e-3, le=1)] = 1.0
    conv_tflops: Rate | None = None
    matmul_tflops: Rate | None = None
    fp32_tflops: Rate | None = None
    tf32_tflops: Rate | None = None
    overhead_us: Microseconds = 0.0
    dispatch_us: Microseconds | None = None
    source: Prose


class Phone(_Strict):
    """Which attached phone is meant and who signs the app that runs there; needed by the ``coreml`` runtime alone.

    ``model`` is its product type, ``iPhone17,2`` for an iPhone 16 Pro Max; another one is refused.
    """

    udid: Line = ""
    model: Line = ""
    development_team: Line = ""
    provisioning_profile_uuid: Line = ""
    bundle_identifier: Line = ""
    app_path: Line = ""


class Device(_Strict):
    """What a hardware team edits. Unknown keys are errors; every figure has its unit in its name.

    Args:
        chip, os: ``host`` stands for whatever machine the profiler runs on.
        memory_limit_mb: what one workload may take (MB = 10^6 bytes); more is refused before it is sent.
        lowerings: how workloads are lowered, in order (``all``: every way there is); empty means the runtime's default.
        threads: of the runtime, where it has any.
        provider: ONNX Runtime's execution provider; the compute unit's own where none is named.
        optimization: how far ONNX Runtime rewrites the graph when it loads it; ``all`` where nothing is stated.
        timeout_s: for loading a workload and for one visit to it.
        cool_down_s: pause after a round in which the reference workload was slower than usual.
        local: the ``coreml`` runtime measures the Mac that the profiler runs on, and no attached phone.
        cuda_graph: the ``torch`` runtime replays a captured graph on CUDA, as a deployed engine would, and not kernel
            launches from Python.
    """

    name: FileName
    summary: Prose = ""
    chip: Line = "host"
    os: Line = "host"
    runtime: Line
    compute_unit: Literal["ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY", "CPU", "CUDA"] = "CPU"
    precision: Literal["fp32", "fp16"] = "fp32"
    memory_limit_mb: Megabytes | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    lowerings: tuple[Line, ...] = ()
    method: Literal["alone", "slope", "in_context"] = "alone"
    timeout_s: Seconds = 120.0
    cool_down_s: Annotated[float, Field(ge=0, le=MILLION)] = 0.0
    provider: Line = ""
    optimization: Literal["", "all", "extended", "basic", "none"] = ""
    local: bool = False
    cuda_graph: bool = False
    roofline: Roofline | None = None
    phone: Phone | None = None
    notes: Prose = ""

    @model_validator(mode="after")
    def _complete(self) -> Device:
        if self.runtime == "roofline" and self.roofline is None:
            raise ValueError("runtime roofline needs a 'roofline' section with peak_tflops, bandwidth_gb_s and source")
        if self.local and self.runtime != "coreml":
            raise ValueError(f"local is for runtime coreml alone, and this is {self.runtime}; leave it out")
        if self.optimization and self.runtime != "onnxruntime":
            raise ValueError(f"optimization is for runtime onnxruntime alone, and this is {self.runtime}; leave it out")
        if self.cuda_graph and (self.runtime, self.compute_unit) != ("torch", "CUDA"):
            raise ValueError("cuda_graph is for runtime torch on compute_unit CUDA; set these, or leave it out")
        return self

    @classmethod
    def load(cls, name_or_path: str | Path) -> Device:
        """The device of that shipped name, or of that YAML file.

        Raises:
            ProfileError: if there is no such device or file, or the file states something that no device has.
        """
        text = str(name_or_path)
        path = Path(text)
        if path.suffix in (".yaml", ".yml") or path.is_file():
            if not path.is_file():
                raise ProfileError(f"device file {text} does not exist; give a path to a YAML or one of: {_known()}.")
            try:
                return cls.parse(path.read_text(encoding="utf-8"), origin=path.name)
            except UnicodeDecodeError as error:
                raise ProfileError(f"{path.name!a}: not a text file ({error.reason}); a device is a YAML.") from None
            except OSError as error:
                raise ProfileError(f"{path.name!a}: cannot be read ({error.strerror}).") from None
        shipped = _shipped()
        if text not in shipped:
            raise ProfileError(f"{unknown('device', text, shipped)} A device of your own is given by its .yaml path.")
        return cls.parse(shipped[text], origin=f"{text}.yaml")

    @classmethod
    def parse(cls, text: str, origin: str = "device") -> Device:
        """The device a YAML text states; ``origin`` stands before each error message."""
        origin = _printable(origin)
        try:
            data = parse_yaml(text)
        except UnreadableError as error:
            raise ProfileError(f"{origin}: {error}; see a shipped device for the form.") from None
        if not isinstance(data, dict):
            raise ProfileError(f"{origin}: a device is a mapping of keys to values, not {type(data).__name__}.")
        try:
            device = cls.model_validate(data)
        except ValidationError as error:
            raise ProfileError(f"{origin}: {_explain(error)}") from None
        from device_profiler.runtimes import REGISTRY

        if device.runtime not in REGISTRY.names():
            raise ProfileError(f"{origin}: {unknown('runtime', device.runtime, REGISTRY.names())}")
        return device


def list_devices() -> tuple[str, ...]:
    """Names of the devices that ship with the package, sorted."""
    return tuple(sorted(_shipped()))


@cache
def _shipped() -> dict[str, str]:
    folder = resources.files("device_profiler") / "devices"
    return {f.name[: -len(".yaml")]: f.read_text("utf-8") for f in folder.iterdir() if f.name.endswith(".yaml")}


def _known() -> str:
    return ", ".join(list_devices())


def _keys_at(location: tuple[Any, ...]) -> tuple[str, ...]:
    nested: dict[str, type[_Strict]] = {"roofline": Roofline, "phone": Phone}
    model: type[_Strict] = nested.get(str(location[-1]), Device) if location else Device
    return tuple(model.model_fields)


def _explain(error: ValidationError) -> str:
    """The first thing wrong, as path, value, rule and remedy on one line."""
    first = error.errors()[0]
    location, kind, value = first["loc"], first["type"], first.get("input")
    path = _printable(".".join(str(part) for part in location))
    if kind == "extra_forbidden":
        known = _keys_at(location[:-1])
        return f"unknown key {_shown(path)}.{nearest(str(location[-1]), known)} Known keys: {', '.join(known)}."
    if kind == "missing":
        return f"key {path!r} is missing; every device states it."
    if kind == "literal_error":
        allowed = str(first["ctx"]["expected"])
        return f"{path}: {_shown(value)} is not allowed; it must be {allowed}."
    if kind in ("float_parsing", "float_type", "int_parsing", "int_type", "int_from_float"):
        unit = next((u for s, u in UNITS.items() if str(location[-1]).endswith(s)), "")
        return f"{path}: {_shown(value)} is not a number{unit}; write the bare number, the unit is in the key's name."
    if kind in ("bool_parsing", "bool_type"):
        return f"{path}: {_shown(value)} is neither true nor false; write one of them."
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{path}: {message} (got {_shown(value)})." if path else f"{message}."


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _shown(value: Any) -> str:
    """A value as a message shows it: short, and with its control characters spelled out."""
    return reprlib.repr(value)


UNITS = {
    "_mb": " of MB (10^6 bytes)",
    "_tflops": " of TFLOP/s",
    "_gb_s": " of GB/s",
    "_us": " of microseconds",
    "_s": " of seconds",
}
