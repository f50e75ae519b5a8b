"""The packages of a model: lowered, compressed, told what they are, and checked as far as this machine can."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from device_profiler import host
from nas.errors import NasError
from nas.export import compress, ends, forms, metadata
from nas.export.audit import audit_network
from nas.export.checks import UNCHECKED, Function, Places, check_functions, check_storable
from nas.export.folder import ENDS, PARTS, SUFFIXES, check_parts, exported, put, refuse_other_models
from nas.export.graph import SUFFIX as GRAPH
from nas.export.graph import Drawn, Row, rows_of
from nas.export.graph import write as write_graph
from nas.export.network import NAMES, TIMESTEP, Shape, bound_at, function_name
from nas.files import folder_beside
from nas.outputs import MADE_BY, restore, sole_writer_of
from search_spaces.space import latent_shape

if TYPE_CHECKING:
    from device_profiler.evaluator.check import Check

PACKAGE = "unet.mlpackage"
PARITY = 0.05  # of the largest output, float16 against float32
MAIN = "main"  # what the converter calls the function of a package that has one


@dataclass(frozen=True)
class How:
    """How packages are written.

    Attributes:
        quantize: weights in fewer bits: one of ``compress.BITS``. Outputs then differ, and are held to no module.
        safe: normalisation and attention spelled so that float16 holds them, and the timestep in float32.
        check: evaluate what was saved, and refuse it over a bound; see ``nas.export.checks``.
        graph: write the network as a graph, too; see ``nas.export.graph``.
    """

    quantize: str | None = None
    safe: bool = False
    check: bool = True
    graph: bool = False


def export_model(
    model: Path,
    out: Path,
    clip: str = "deployment",
    *,
    shapes: Sequence[Shape] = (),
    parts: Sequence[str] = PARTS,
    quantize: str | None = None,
    safe: bool = False,
    check: bool = True,
    audit: Path | None = None,
    device: str | None = None,
    tables: Path = Path("tables"),
    format: str = "coreml",
    graph: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write ``out/unet.mlpackage`` (float16, iOS 18), those of its ends, and ``out/export.json`` beside them.

    Every function of every saved package is evaluated with torch against the module it was made from (``check`` in the
    facts); Core ML's own output only where it can predict (macOS), and ``parity`` says whether it did. Packages of
    other parts that lie in ``out`` stay, with their facts.

    Args:
        clip: of the space; its shape is the package's. shapes: in its place; several become functions of one package
            that share their weights, named ``f16x512x512``, the first the default.
        parts: of ``PARTS``; a space that works in pixels has no decoder.
        quantize, safe, check: see ``How``. audit: a cache or folder of clips; see ``nas.export.audit``.
        device, tables: whose table predicts the costs that the package's metadata states, and says in which form each
            layer is written: the one that was fastest there.
        graph: write ``unet.graph`` for Google's Model Explorer, with the device's milliseconds where one is named.
        format: ``coreml``, or ``coreai`` for ``.aimodel`` files (``nas.export.coreai``), which know none of quantize,
            safe, audit, graph and device.
        tell: called with a sentence before something long.

    Returns:
        Package path, operation counts, fused attentions, rank, sizes in MB, seconds, peak host memory, parity.

    Raises:
        AnswerIsNo: if a package computes something else than its part, or float16 cannot hold it; what was there stays.
        NasError: if the folder holds no model, or Core ML cannot express a part. TableError: if the device has no table
            of the space.
    """
    given = {"--quantize": quantize, "--safe": safe, "--audit": audit, "--device": device, "--graph": graph}
    _check_asked(parts, format, quantize, [name for name, value in given.items() if value])
    out = Path(os.path.realpath(out))  # "." has no name to put something beside
    if format == "coreai":
        from nas.export.coreai import export_coreai

        return export_coreai(model, out, clip, shapes=shapes, parts=parts, check=check, tell=tell)
    with sole_writer_of(out):
        how = How(quantize, safe, check, graph)
        return _export(model, out, clip, shapes, parts, how, audit, device, tables, tell)


def _check_asked(parts: Sequence[str], format: str, quantize: str | None, given: Sequence[str]) -> None:
    """Refuse what does not go together, before anything is read; ``given`` are the options that were."""
    compress.check(quantize)
    check_parts(parts)
    if format not in SUFFIXES:
        raise NasError(f"--format {format}: must be one of {', '.join(SUFFIXES)}")
    if format == "coreai" and given:
        raise NasError(f"{', '.join(given)}: of Core ML's packages alone; leave it out with --format coreai")
    for name in ("--audit", "--graph"):
        if name in given and "network" not in parts:
            raise NasError(f"{name} is of the network, which --parts leaves out; add it, or leave {name} out")


def _export(
    model: Path,
    out: Path,
    clip: str,
    shapes: Sequence[Shape],
    parts: Sequence[str],
    how: How,
    audit: Path | None,
    device: str | None,
    tables: Path,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    from nas.model.pipeline import load_pipeline

    before = exported(out)
    pipeline = load_pipeline(model)
    weights = pipeline.fingerprint()
    refuse_other_models(out, before, weights, parts)
    unet = pipeline.unet.eval()
    known = unet.space.clip(clip)
    wanted = list(dict.fromkeys(shapes)) or [(known.frames, known.height, known.width)]
    latents = [latent_shape(unet.space, *shape) for shape in wanted]  # refused before anything is lowered
    deployed = unet.space.clip("deployment")
    if device is not None and (deployed.frames, deployed.height, deployed.width) not in wanted:
        raise NasError(
            f"--device {device}: its table is of {deployed.frames}x{deployed.height}x{deployed.width}, which is not "
            "among the exported shapes; add it, or leave --device out"
        )
    predicted = None if device is None else metadata.predicted_costs(unet, device, tables)
    written = {} if device is None else forms.lowerings_of_device(unet, device, tables)
    forms.apply_lowerings(unet, written)
    started = time.perf_counter()
    restore(out)
    with folder_beside(out) as partial:
        facts: dict[str, Any] = {"package": str(out / PACKAGE), "weights": weights, "clip": clip}
        facts |= {"quantize": how.quantize, "made_by": MADE_BY}
        if "network" in parts:
            rows = {} if device is None or not how.graph else rows_of(unet, device, tables)
            facts |= _network(model, unet, wanted, how, partial, rows, tell)
            told = metadata.facts_of(unet, predicted, facts["check"])
            metadata.write(partial / PACKAGE, told | metadata.network_app(pipeline, weights, _functions_of(wanted)))
            if audit is not None:
                tell(f"evaluating the network on {audit}")
                functions = _bound(unet, wanted, how)
                facts["audit"] = audit_network(partial / PACKAGE, functions, wanted, pipeline, audit)
        facts["predicted"], facts["lowerings"], facts["forms"] = predicted, written, forms.forms_in(written)
        for name in ENDS:
            part = _part(pipeline, name, latents[0]) if name in parts else None
            if part is not None:
                tell(f"lowering the {name.replace('_', ' ')}")
                facts[name] = _end(model, name, part, how, partial)
                told = metadata.facts_of(unet, None, facts[name]["check"])
                metadata.write(partial / f"{name}.mlpackage", told | metadata.end_app(pipeline, weights, name, part))
        facts["seconds"] = round(time.perf_counter() - started, 1)
        facts["peak_host_mb"] = round(host.most_resident_mb(), 0)
        put(partial, out, facts, before)
    return facts


def _network(
    model: Path,
    unet: Any,
    shapes: Sequence[Shape],
    how: How,
    folder: Path,
    rows: Mapping[str, Row],
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """``unet.mlpackage`` in the folder, of one shape or of several functions; what is in it."""
    sizes = [p.numel() for p in unet.parameters()]
    expected = compress.predicted_mb(sizes, how.quantize)
    if how.quantize is not None:
        plain = compress.predicted_mb(sizes, None)
        tell(f"{how.quantize}: {plain:.2f} MB of weights should become {expected:.2f} MB")
    functions = _bound(unet, shapes, how)
    tell(f"lowering the network at {', '.join('x'.join(map(str, shape)) for shape in shapes)}")
    checks: list[Check] = []
    written = write_package(f"{model}: the network", functions, how, folder / PACKAGE, checks.append)
    if how.graph:
        written["graph"] = _drawn(folder / PACKAGE, functions, checks, rows)
    return {
        "functions": [one.name for one in functions] if len(shapes) > 1 else [],
        "shapes": ["x".join(map(str, shape)) for shape in shapes],
        "inputs": {name: list(x.shape) for name, x in zip(NAMES, functions[0].inputs, strict=True)},
        "parameters": sum(sizes),
        "safe": how.safe,
        "fused_attention": written.pop("attention_ops"),
        **written,
        "weights_mb_expected": round(expected, 3),
    }


def _drawn(package: Path, functions: Sequence[Function], checks: Sequence[Check], rows: Mapping[str, Row]) -> list[str]:
    """Write the package's graph beside it; the names of its files."""
    from device_profiler.evaluator.package import Package

    opened, found = Package(package), {check.function: check for check in checks}
    drawn = [Drawn(opened.function(one.name), Places(one.module), found.get(one.name)) for one in functions]
    return write_graph(package.with_suffix(GRAPH), package.name, drawn, rows)


def _functions_of(shapes: Sequence[Shape]) -> dict[str, Shape]:
    """What the functions of the network's package are called."""
    return {function_name(shape): shape for shape in shapes} if len(shapes) > 1 else {MAIN: shapes[0]}


def _bound(unet: Any, shapes: Sequence[Shape], how: How) -> list[Function]:
    return [Function(name, *bound_at(unet, shape, how.safe), NAMES) for name, shape in _functions_of(shapes).items()]


def _part(pipeline: Any, name: str, latents: tuple[int, int, int]) -> ends.Part | None:
    return ends.decoder(pipeline, latents) if name == "decoder" else ends.text_encoder(pipeline)


def _end(model: Path, name: str, part: ends.Part, how: How, folder: Path) -> dict[str, Any]:
    module, inputs, names = part
    functions = [Function(MAIN, module, inputs, names)]
    written = write_package(f"{model}: the {name.replace('_', ' ')}", functions, how, folder / f"{name}.mlpackage")
    kept = ("operations", "weights_mb", "package_mb", "parity", "check")
    return {
        "inputs": {key: list(x.shape) for key, x in zip(names, inputs, strict=True)},
        **{"quantize": how.quantize, "safe": how.safe},
        **{key: written[key] for key in kept},
    }


def write_package(
    what: str,
    functions: Sequence[Function],
    how: How,
    target: Path,
    seen: Callable[[Check], None] = lambda found: None,
) -> dict[str, Any]:
    """Lower, compress, join and check the functions of one package; what the first is made of, and the check."""
    places, stats, told = [], [], []
    for one in functions:
        check_storable(one.module, what)
        place = target.with_name(f"{target.stem}-{one.name}")
        place.mkdir()
        stats.append(_lower(what, one, how.safe, place))
        package = place / stats[-1].pop("file")
        if how.quantize is not None:
            if how.check:  # whether the converter kept the function shows before its weights are changed
                check_functions(package, [replace(one, name=MAIN)], what)
            compress.compress(package, how.quantize)
        told.append(parity(package, one.module, one.names, one.inputs, None if how.quantize else PARITY))
        places.append((package, one.name))
    if len(places) == 1:
        os.replace(places[0][0], target)
    else:
        _join(places, target)
    for package, _ in places:
        shutil.rmtree(package.parent)
    checked: Any = UNCHECKED
    if how.check:
        checked = check_functions(target, functions, what, compressed=how.quantize is not None, seen=seen)
    sizes = {"weights_mb": weights_mb(target), "package_mb": package_mb(target)}
    return {**stats[0], **sizes, "parity": told[0], "check": checked}


def _lower(what: str, one: Function, safe: bool, folder: Path) -> dict[str, Any]:
    from device_profiler.errors import WorkloadError
    from device_profiler.lowering.coreml import lower

    wide = [name for name in one.names if name == TIMESTEP and safe]
    try:
        stats = lower(one.module, one.inputs, one.names, "fused", "fp16", folder, check=False, safe=safe, wide=wide)
    except WorkloadError as error:
        raise NasError(f"{what} cannot be exported to Core ML: {error}") from error
    return {name: told for name, told in stats.items() if name not in ("export_error", "numeric_error", "evaluated")}


def _join(packages: Sequence[tuple[Path, str]], target: Path) -> None:
    """One package whose functions share their weights."""
    from device_profiler.quiet import quiet

    with quiet():
        import coremltools as ct

        functions = ct.utils.MultiFunctionDescriptor()
        for package, name in packages:
            functions.add_function(str(package), src_function_name="main", target_function_name=name)
        functions.default_function_name = packages[0][1]
        ct.utils.save_multifunction(functions, str(target))


def weights_mb(package: Path) -> float:
    return round(sum(file.stat().st_size for file in package.rglob("weight.bin")) / 1e6, 6)


def package_mb(package: Path) -> float:
    return round(sum(file.stat().st_size for file in package.rglob("*") if file.is_file()) / 1e6, 6)


def parity(
    package: Path, module: nn.Module, names: tuple[str, ...], inputs: tuple[Tensor, ...], limit: float | None = PARITY
) -> str:
    """How far the package's prediction is from torch's, where Core ML can predict; else a sentence.

    Raises:
        NasError: if it is off by more than ``limit`` of the largest output.
    """
    if platform.system() != "Darwin":
        return "not checked: Core ML predicts on macOS only"
    import coremltools as ct
    import numpy as np

    loaded = ct.models.MLModel(str(package), compute_units=ct.ComputeUnit.CPU_ONLY)
    fed = {
        name: x.numpy().astype(np.float16 if x.is_floating_point() else np.int32)
        for name, x in zip(names, inputs, strict=True)
    }
    got = torch.from_numpy(np.asarray(loaded.predict(fed)["y"], dtype=np.float32))
    with torch.no_grad():
        expected = module(*inputs)
    off = float((got - expected).abs().max() / expected.abs().max())
    if limit is not None and not off <= limit:
        raise NasError(f"{package}: Core ML's output is off by {off:.2g} of the largest, over {limit}; do not ship it")
    return f"within {off:.1e} of torch"
