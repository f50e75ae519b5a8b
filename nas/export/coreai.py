"""The parts of a model as Core AI's ``.aimodel`` files, each executed by Core AI's runtime before it replaces one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from device_profiler import host
from device_profiler.errors import WorkloadError
from device_profiler.lowering import coreai
from nas.errors import AnswerIsNo, NasError
from nas.export import ends, metadata
from nas.export.checks import UNCHECKED, Function, check_storable
from nas.export.folder import ENDS, FILES, NETWORK, exported, put, refuse_other_models
from nas.export.network import NAMES, TIMESTEP, bound_at, function_name
from nas.files import folder_beside
from nas.model.packages import PREFIX
from nas.outputs import MADE_BY, restore, sole_writer_of
from nas.tasks.noise import TIMESTEPS
from search_spaces.space import latent_shape

if TYPE_CHECKING:
    from nas.export.network import Bound, Shape

KIND, SUFFIX = "coreai", ".aimodel"
BOUND_FP32 = 1e-4  # of the largest output: nothing is rounded, so the converter must have kept the function
BOUND_FP16 = 2e-2
Tell = Callable[[str], None]


class Halved(nn.Module):
    """The network whose weights will be float16, called with a timestep in float32; see ``Bound``."""

    def __init__(self, bound: Bound) -> None:
        super().__init__()
        self.network, self.diffusion, self.frames = bound.network, bound.diffusion, bound.frames

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        def predict(sample: Tensor, told: Tensor) -> Tensor:
            return self.network(sample.to(context.dtype), told, context, self.frames)

        if self.diffusion.prediction == "velocity":
            return predict(x, timestep)
        return self.diffusion.as_velocity(x.float(), timestep / TIMESTEPS, predict).to(x.dtype)


def export_coreai(
    model: Path,
    out: Path,
    clip: str,
    *,
    shapes: Sequence[Shape],
    parts: Sequence[str],
    check: bool,
    tell: Tell,
) -> dict[str, Any]:
    """Write ``out/unet.aimodel`` and those of its ends in float16, and ``export.json``; see ``export_model``.

    Each function is converted in float32 too, and both are executed and held to the module.

    Raises:
        AnswerIsNo: if Core AI answers something else. NasError: if ``coreai-torch`` is missing, or a part cannot be
            converted.
    """
    if not coreai.available():
        raise NasError(f"--format coreai needs coreai-torch: {coreai.INSTALL}")
    with sole_writer_of(out):
        return _export(model, out, clip, shapes, parts, check, tell)


def _export(
    model: Path, out: Path, clip: str, shapes: Sequence[Shape], parts: Sequence[str], check: bool, tell: Tell
) -> dict[str, Any]:
    from nas.model.pipeline import load_pipeline

    before = exported(out, KIND)
    pipeline = load_pipeline(model)
    weights = pipeline.fingerprint()
    refuse_other_models(out, before, weights, parts, KIND)
    unet = pipeline.unet.eval()
    known = unet.space.clip(clip)
    wanted = list(dict.fromkeys(shapes)) or [(known.frames, known.height, known.width)]
    latents = [latent_shape(unet.space, *shape) for shape in wanted]
    named = {function_name(shape): shape for shape in wanted} if len(wanted) > 1 else {coreai.MAIN: wanted[0]}
    started = time.perf_counter()
    restore(out)
    with folder_beside(out) as partial:
        facts: dict[str, Any] = {"package": str(out / f"{FILES[NETWORK]}{SUFFIX}"), "format": KIND}
        facts |= {"weights": weights, "clip": clip, "made_by": MADE_BY}
        if NETWORK in parts:
            functions = [Function(name, *bound_at(unet, shape, True), NAMES) for name, shape in named.items()]
            tell(f"converting the network at {', '.join('x'.join(map(str, shape)) for shape in wanted)}")
            told = metadata.network_app(pipeline, weights, named)
            facts |= _written(f"{model}: the network", functions, partial / f"{FILES[NETWORK]}{SUFFIX}", told, check)
            facts |= {"shapes": ["x".join(map(str, shape)) for shape in wanted]}
        for name in ENDS:
            end = ends.decoder(pipeline, latents[0]) if name == "decoder" else ends.text_encoder(pipeline)
            if name not in parts or end is None:
                continue
            tell(f"converting the {name.replace('_', ' ')}")
            told = metadata.end_app(pipeline, weights, name, end)
            what = f"{model}: the {name.replace('_', ' ')}"
            facts[name] = _written(what, [Function(coreai.MAIN, *end)], partial / f"{name}{SUFFIX}", told, check)
        facts["seconds"] = round(time.perf_counter() - started, 1)
        facts["peak_host_mb"] = round(host.most_resident_mb(), 0)
        put(partial, out, facts, before)
    return facts


def _written(
    what: str, functions: Sequence[Function], target: Path, told: Mapping[str, str], check: bool
) -> dict[str, Any]:
    """Convert the functions of one file, execute them, and say what is in it."""
    for one in functions:
        check_storable(one.module, what)
    checked: Any = _checked(what, functions, target) if check else UNCHECKED
    note = {f"{PREFIX}{name}": text for name, text in told.items()}
    if not check:
        note[f"{PREFIX}check"] = UNCHECKED
    _write(what, functions, target, half=True, note=note)
    if check:
        for one in functions:
            checked[one.name]["error_fp16"] = _held(what, one, target, BOUND_FP16)
    return {
        "functions": [one.name for one in functions] if len(functions) > 1 else [],
        "inputs": {name: list(x.shape) for name, x in zip(functions[0].names, functions[0].inputs, strict=True)},
        "operations": coreai.describe(target)["operations"],
        "package_mb": round(coreai.package_mb(target), 6),
        "check": checked,
    }


def _checked(what: str, functions: Sequence[Function], target: Path) -> dict[str, dict[str, float]]:
    """Each function in float32, written aside, executed, and taken away again."""
    import shutil

    aside = target.with_name(f"fp32-{target.name}")
    _write(what, functions, aside, half=False, note={})
    try:
        return {one.name: {"error_fp32": _held(what, one, aside, BOUND_FP32)} for one in functions}
    finally:
        shutil.rmtree(aside)


def _write(what: str, functions: Sequence[Function], target: Path, *, half: bool, note: Mapping[str, str]) -> None:
    from nas.export.network import Bound

    entries = [
        coreai.Entry(one.name, Halved(one.module) if half and isinstance(one.module, Bound) else one.module, one.inputs)
        for one in functions
    ]
    try:
        coreai.write(entries, functions[0].names, target, half=half, wide=[TIMESTEP], metadata=note)
    except WorkloadError as error:
        raise NasError(f"{what} cannot be exported to Core AI: {error}") from error


def _held(what: str, one: Function, target: Path, bound: float) -> float:
    try:
        off = coreai.error_of(target, one.module, one.inputs, one.names, one.name)
    except WorkloadError as error:
        raise NasError(f"{what}: {error}; --no-check writes it unexecuted, and says so in it") from error
    if not off <= bound:
        kind = "float16" if bound == BOUND_FP16 else "float32"
        raise AnswerIsNo(
            f"{what}: {target.name}, function {one.name}: Core AI's answer in {kind} is off by {off:.2g} of the "
            f"largest output, over {bound:g}; nothing was replaced; --no-check writes it all the same, and says so"
        )
    return float(f"{off:.4g}")


def sentences(facts: Mapping[str, Any]) -> list[str]:
    """A line for each file that an export wrote, and for each function that was executed."""
    said = []
    for part, told in ((NETWORK, facts), *((end, facts.get(end, {})) for end in ENDS)):
        if "operations" not in told:
            continue
        name = f"{FILES[part]}{SUFFIX}"
        said.append(f"{name}: {told['operations']} operations, {told['package_mb']:.2f} MB, float16")
        if isinstance(told["check"], str):
            said.append(f"{name}: {told['check']}")
            continue
        for function, found in told["check"].items():
            said.append(
                f"{name}, {function}: executed by Core AI's runtime, off by {found['error_fp32']:.1e} in float32 and "
                f"{found['error_fp16']:.1e} in float16"
            )
    return said
