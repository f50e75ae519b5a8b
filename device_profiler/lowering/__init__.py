"""From a workload to what a runtime executes, cached by its content.

What was lowered can be checked against torch.

An artifact is a folder: what the toolkit wrote, and ``lowered.json`` with the inputs' shapes, a sample of the torch
module's output and the toolkit's statistics. Its name is a hash over everything it depends on, so a second device
that eats the same toolkit lowers nothing, and a changed block never meets an old file.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_profiler.child import Child
from device_profiler.errors import WorkloadError, one_line
from device_profiler.lowering.forms import forms_of, reform, split
from device_profiler.subject import Subject, package_version
from search_spaces.workload import Workload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

# toolkit -> "module:function(module, inputs, names, lowering, precision, folder) -> statistics".
TOOLKITS: dict[str, str] = {
    "onnx": "device_profiler.lowering.onnx:lower",
    "coreml": "device_profiler.lowering.coreml:lower",
    "coreai": "device_profiler.lowering.coreai:lower",
    "counts": "device_profiler.lowering.counts:lower",
    "module": "device_profiler.lowering.module:lower",
}
TOOLKIT_PACKAGES = {
    "onnx": ("torch", "onnx", "onnxscript"),
    "coreml": ("torch", "coremltools"),
    "coreai": ("torch", "coreai-torch", "coreai-core"),
}
CHECKING = ("coreml", "coreai")  # whose lowering runs what it made, unless it is told not to
MANIFEST = "lowered.json"
SAMPLES = 4096
FORM_TOLERANCE = 1e-4  # of a form against the plain block, both float32 in torch
SCHEMA = 1


@dataclass(frozen=True)
class Input:
    """One input of a lowered workload: standard normal values of a fixed seed, or the values stated."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    values: tuple[float, ...] | None = None

    def array(self, index: int) -> NDArray[Any]:
        """The input itself; the same numbers in every process."""
        import numpy as np

        if self.values is not None:
            return np.asarray(self.values, dtype=self.dtype).reshape(self.shape)
        dtype = np.float32 if self.dtype in ("float32", "float16") else np.float64
        drawn = np.random.default_rng(1234 + index).standard_normal(self.shape, dtype=dtype)
        return drawn.astype(self.dtype, copy=False)


@dataclass(frozen=True)
class Lowered:
    """A workload, lowered. ``folder`` holds the artifact, ``stats`` what the toolkit says of it.

    ``expected_at`` and ``expected`` are a sample of the torch module's flattened output, ``scale`` its largest
    absolute value.
    """

    subject: Subject
    toolkit: str
    lowering: str
    folder: Path
    inputs: tuple[Input, ...]
    output_shape: tuple[int, ...]
    output_dtype: str
    expected_at: tuple[int, ...]
    expected: tuple[float, ...]
    scale: float
    stats: Mapping[str, Any]

    @property
    def file(self) -> Path:
        """What the toolkit wrote."""
        return self.folder / str(self.stats.get("file", ""))

    def arrays(self) -> list[NDArray[Any]]:
        """The inputs, in order."""
        return [spec.array(index) for index, spec in enumerate(self.inputs)]

    def error_of(self, output: NDArray[Any]) -> float:
        """Largest difference from the torch module's output, relative to its largest absolute value.

        Infinite where the shape differs or a value is not finite.
        """
        return sample_error(output, self.output_shape, self.expected_at, self.expected, self.scale)

    def device_error_of(self, output: NDArray[Any]) -> float:
        """``error_of`` against what the evaluator makes of the lowered file in float16, where that is known and finite.

        What a compute unit adds to the package's own error, then; else against the torch module.
        """
        expected = expected_of_device(self.stats, self.expected)
        return sample_error(output, self.output_shape, self.expected_at, expected, self.scale)

    @classmethod
    def read(cls, folder: Path) -> Lowered:
        """The artifact in a folder."""
        data = json.loads((folder / MANIFEST).read_text("utf-8"))
        return cls(
            subject=Subject.from_json(data["subject"]),
            toolkit=data["toolkit"],
            lowering=data["lowering"],
            folder=folder,
            inputs=tuple(
                Input(i["name"], tuple(i["shape"]), i["dtype"], None if i["values"] is None else tuple(i["values"]))
                for i in data["inputs"]
            ),
            output_shape=tuple(data["output_shape"]),
            output_dtype=data["output_dtype"],
            expected_at=tuple(data["expected_at"]),
            expected=tuple(data["expected"]),
            scale=data["scale"],
            stats=data["stats"],
        )


def sample_error(
    output: NDArray[Any], shape: Iterable[int], at: Iterable[int], expected: Iterable[float], scale: float
) -> float:
    """``max |output[at] - expected| / scale``; infinite on another shape or a value that is not finite."""
    import numpy as np

    if tuple(output.shape) != tuple(shape):
        return float("inf")
    got = output.reshape(-1)[np.asarray(tuple(at), dtype=np.int64)].astype(np.float64)
    if not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got - np.asarray(tuple(expected))).max() / max(scale, 1e-12))


def sampled_places(size: int) -> NDArray[np.int64]:
    """Which of an output's values are kept: the same for whoever asks."""
    import numpy as np

    return np.unique(np.random.default_rng(99).integers(0, size, min(SAMPLES, size)))


def expected_of_device(stats: Mapping[str, Any], expected: Sequence[float]) -> Sequence[float]:
    """What a device is held to, at ``sampled_places``: the evaluator's float16, or the module's where that has none."""
    evaluated: Sequence[float] | None = stats.get("evaluated")
    return expected if evaluated is None else evaluated


def default_lowerings(toolkit: str, workload: Workload) -> tuple[str, ...]:
    """Names of the lowerings a toolkit has for a workload; the first is the default.

    Where there is attention, ``fused`` keeps it one operation and ``decomposed`` spells it out. ``+form`` is another
    form of the block (``device_profiler.lowering.forms``).
    """
    from search_spaces.blocks import has_attention

    attention: tuple[str, ...] = ("plain",)
    if toolkit != "module" and has_attention(workload):
        attention = ("decomposed", "fused") if toolkit == "onnx" else ("fused", "decomposed")
    return (*attention, *(f"{how}+{form}" for form in forms_of(workload.block) for how in attention))


def artifact_name(subject: Subject, toolkit: str, lowering: str, check: bool = True) -> str:
    """A readable, unique folder name for the artifact."""
    module = TOOLKITS[toolkit].partition(":")[0]
    spec = importlib.util.find_spec(module)
    digest = hashlib.sha256(f"{SCHEMA} {subject.fingerprint()} {toolkit} {lowering}".encode())
    forms = sorted(Path(__file__).parent.glob("*form*.py")) if split(lowering)[1] else []
    spelled = [Path(__file__).with_name("spelled.py")] if toolkit in CHECKING else []
    for origin in (__file__, spec.origin if spec else None, *forms, *spelled):
        if origin:
            digest.update(Path(origin).read_bytes())
    for package in TOOLKIT_PACKAGES.get(toolkit, ()):
        digest.update(f"{package}=={package_version(package)}".encode())
    unchecked = "" if check else "unchecked-"
    return f"{subject.workload.block}-{toolkit}-{lowering}-{unchecked}{digest.hexdigest()[:20]}"


def find(subject: Subject, toolkit: str, lowering: str, cache: Path, check: bool = True) -> Lowered | None:
    """The artifact if it is in the cache already. Imports nothing heavy."""
    folder = cache / artifact_name(subject, toolkit, lowering, check)
    try:
        return Lowered.read(folder)
    except (OSError, ValueError, KeyError):
        return None


def lower(subject: Subject, toolkit: str, lowering: str, cache: Path, check: bool = True) -> Lowered:
    """Lower in this process (imports torch and the toolkit) and put the artifact into the cache.

    Without ``check`` the module is not run: no expected output is kept and the exported program is not compared with
    it. Such an artifact tells what a package holds, and no runtime is given it.

    Raises:
        Exception: whatever the toolkit raises; ``device_profiler.child.classify`` gives its status.
    """
    known = find(subject, toolkit, lowering, cache, check)
    if known is not None:
        return known
    import torch

    start = time.perf_counter()
    folder = cache / artifact_name(subject, toolkit, lowering, check)
    partial = cache / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    partial.mkdir(parents=True)
    try:
        with torch.no_grad():
            module, examples, names = subject.build()
            inputs = tuple(_input(name, tensor) for name, tensor in zip(names, examples, strict=True))
            expected = _expected(module, inputs) if check and toolkit != "counts" else None
            module = _reformed(module.eval(), lowering, inputs, expected)
            target, _, function = TOOLKITS[toolkit].partition(":")
            run = getattr(importlib.import_module(target), function)
            precision = subject.workload.precision
            more = {} if check or toolkit not in CHECKING else {"check": False}
            attention = split(lowering)[0]
            stats = run(module.eval(), tuple(_tensors(inputs)), names, attention, precision, partial, **more)
        manifest = {
            "schema": SCHEMA,
            "key": subject.key,
            "subject": subject.to_json(),
            "toolkit": toolkit,
            "lowering": lowering,
            "inputs": [{"name": i.name, "shape": i.shape, "dtype": i.dtype, "values": i.values} for i in inputs],
            **(expected or {"output_shape": [], "output_dtype": "", "expected_at": [], "expected": [], "scale": 0.0}),
            "stats": {**stats, "seconds": round(time.perf_counter() - start, 3)},
        }
        (partial / MANIFEST).write_text(json.dumps(manifest), "utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Lowered.read(folder)


def lower_all(
    jobs: Iterable[tuple[Subject, str, str]],
    cache: Path,
    *,
    workers: int = 2,
    timeout_s: float = 600.0,
    memory_limit_mb: float | None = None,
    check: bool = True,
) -> Iterator[tuple[int, Lowered | WorkloadError]]:
    """Lower many in child processes and yield (index of the job, artifact or what went wrong) as each is done.

    A toolkit that crashes, hangs or takes all memory takes its child with it and nothing else. Jobs that the cache
    can answer start no process.
    """
    waiting = []
    for index, (subject, toolkit, lowering) in enumerate(jobs):
        known = find(subject, toolkit, lowering, cache, check)
        if known is not None:
            yield index, known
        else:
            waiting.append((index, subject, toolkit, lowering))
    if not waiting:
        return
    cache.mkdir(parents=True, exist_ok=True)
    children: list[Child | None] = [None] * max(1, min(workers, len(waiting)))

    def work(slot: int, subject: Subject, toolkit: str, lowering: str) -> Lowered | WorkloadError:
        child = children[slot]
        told = {"subject": subject.to_json(), "toolkit": toolkit, "lowering": lowering}
        try:
            if child is None:
                child = children[slot] = Child("device_profiler.lowering.worker", memory_limit_mb=memory_limit_mb)
            return Lowered.read(Path(child.call("lower", timeout_s, **told, cache=str(cache), check=check)))
        except WorkloadError as error:
            if child is not None:
                child.close()
            children[slot] = None
            return type(error)(one_line(f"lowering: {error}"))

    # The longest first, so that no child ends up alone with the largest module.
    waiting.sort(key=lambda job: job[1].workload.is_block)
    yield from _spread(waiting, work, children)


def _spread(
    waiting: list[tuple[int, Subject, str, str]],
    work: Callable[[int, Subject, str, str], Lowered | WorkloadError],
    children: Sequence[Child | None],
) -> Iterator[tuple[int, Lowered | WorkloadError]]:
    """Work off what waits, a child at a time each; gives every result as it is done, and closes the children."""
    idle = list(range(len(children)))
    running: dict[Future[Lowered | WorkloadError], tuple[int, int]] = {}
    with ThreadPoolExecutor(len(children)) as pool:
        try:
            while waiting or running:
                while waiting and idle:
                    index, subject, toolkit, lowering = waiting.pop(0)
                    slot = idle.pop()
                    running[pool.submit(work, slot, subject, toolkit, lowering)] = (index, slot)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    index, slot = running.pop(future)
                    idle.append(slot)
                    yield index, future.result()
        finally:  # before the pool waits for what runs: whoever stops does not wait for a toolkit
            for child in children:
                if child is not None:
                    child.close()


def _reformed(
    module: nn.Module, lowering: str, inputs: tuple[Input, ...], expected: dict[str, Any] | None
) -> nn.Module:
    """The module in the lowering's form, compared with what the plain one gave.

    Raises:
        WorkloadError: if it computes something else.
    """
    if not split(lowering)[1]:
        return module
    module = reform(module, lowering)
    if expected is None:
        return module
    output = module(*_tensors(inputs)).float().numpy()
    off = sample_error(
        output, expected["output_shape"], expected["expected_at"], expected["expected"], expected["scale"]
    )
    if not off <= FORM_TOLERANCE:
        raise WorkloadError(f"the form {lowering} is off by {off:.2g} against the plain block; it is another function")
    return module


def _input(name: str, tensor: Tensor) -> Input:
    dtype = str(tensor.dtype).removeprefix("torch.")
    small = tensor.numel() <= 64
    values = tuple(float(v) for v in tensor.flatten().tolist()) if small or not tensor.is_floating_point() else None
    return Input(name, tuple(tensor.shape), dtype, values)


def _tensors(inputs: tuple[Input, ...]) -> list[Tensor]:
    import torch

    return [torch.from_numpy(spec.array(index)) for index, spec in enumerate(inputs)]


def _expected(module: nn.Module, inputs: tuple[Input, ...]) -> dict[str, Any]:
    import numpy as np

    output: NDArray[np.float32] = module(*_tensors(inputs)).float().numpy()
    flat = output.reshape(-1)
    at = sampled_places(flat.size)
    return {
        "output_shape": list(output.shape),
        "output_dtype": "float32",
        "expected_at": at.tolist(),
        "expected": [float(v) for v in flat[at]],
        "scale": float(np.abs(flat).max()),
    }
