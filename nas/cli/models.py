"""Commands of a model: build, export, finetune, sample, evaluate."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from nas.cli.options import (
    LONG,
    MAX_SEED,
    MOST_STEPS,
    Json,
    ModelDir,
    Yaml,
    a_file,
    app,
    below_root,
    emit,
    finite,
    only_once,
    tell,
)
from nas.errors import NasError


@app.command()
def build(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="Run folder, for its supernet's weights.")] = None,
    out: Annotated[Path | None, typer.Option(callback=below_root, help="Model folder; RUN/model by default.")] = None,
    space: Annotated[str | None, typer.Option(help="Without a run: a shipped space's name, or a YAML.")] = None,
    arrangement: Annotated[Path | None, typer.Option(help="Without a run: the arrangement's YAML.")] = None,
    text: Annotated[str | None, typer.Option(help="Without a run: CLIP text model, hub id or folder.")] = None,
    autoencoder: Annotated[
        str | None, typer.Option(help="Of the latents, hub id or folder; of a run, by default the cache's own.")
    ] = None,
    init: Annotated[str | None, typer.Option(help="Without a run: the UNet that the backbone starts from.")] = None,
    prediction: Annotated[
        str | None,
        typer.Option(help="Without a run: what its weights answer: velocity, epsilon (Stable Diffusion 1.5) or v."),
    ] = None,
    as_json: Json = False,
) -> None:
    """An arrangement as a plain diffusers model: a run's chosen one with its weights, or any over an image backbone."""
    from nas.model.build import build_anew
    from nas.run.makers import build_run

    anew = {"--space": space, "--arrangement": arrangement, "--text": text}
    if run is None:
        missing = [name for name, value in {**anew, "--out": out}.items() if value is None]
        if space is None or arrangement is None or text is None or out is None:
            raise NasError(
                f"build takes a RUN, or all of --space, --arrangement, --text and --out; add {', '.join(missing)}"
            )
        kind: Any = prediction or "velocity"
        summary = build_anew(space, arrangement, out, text=text, autoencoder=autoencoder, init=init, prediction=kind)
        emit(summary) if as_json else tell(
            f"{summary['model']}: {summary['parameters']:,} parameters, temporal layers start as the identity"
            + (f"\n{summary['init']}" if summary["init"] else "")
        )
        return
    alone = {**anew, "--init": init, "--prediction": prediction}
    given = [name for name, value in alone.items() if value is not None]
    if given:
        raise NasError(f"{run} has a space, weights and text of its own; leave {', '.join(given)} out")
    summary = build_run(run, out or run / "model", autoencoder)
    emit(summary) if as_json else tell(
        f"{summary['model']}: {summary['parameters']:,} parameters, equal to the supernet's path within "
        f"{summary['difference']:.1e}"
    )


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    out: Annotated[
        Path | None, typer.Option(callback=below_root, help="Folder of the packages; MODEL/../coreml by default.")
    ] = None,
    clip: Annotated[str, typer.Option(help="The space's clip whose shape the package has.")] = "deployment",
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="FRAMESxHEIGHTxWIDTH", help="In place of a clip; several are functions of one package."),
    ] = None,
    parts: Annotated[str, typer.Option(help="Of network, text_encoder and decoder.")] = "network,text_encoder,decoder",
    quantize: Annotated[
        str | None, typer.Option(help="Weights in fewer bits: int8, palettize8, palettize6 or palettize4.")
    ] = None,
    safe: Annotated[
        bool, typer.Option("--safe", help="Spell what may leave float16's range so that it holds; timestep in float32.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Evaluate what was saved against the model; 1 if it differs.")
    ] = True,
    audit: Annotated[
        Path | None, typer.Option(help="A cache or folder of clips: how large values become on them, by operation.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Whose table predicts the costs in the metadata, and picks each layer's form.")
    ] = None,
    tables: Annotated[Path, typer.Option("--table", help="Folder of tables.")] = Path("tables"),
    graph: Annotated[bool, typer.Option("--graph", help="For Model Explorer too, with --device's ms.")] = False,
    format: Annotated[
        str, typer.Option(help="coreml, or coreai for .aimodel files (extra coreai), by default in MODEL/../coreai.")
    ] = "coreml",
    as_json: Json = False,
) -> None:
    """Core ML packages, or Core AI's files, of the network, its text encoder and its decoder."""
    from nas.console import say
    from nas.decoder.folder import is_autoencoder
    from nas.export import export_model
    from nas.export.network import parse_shape

    place = out or Path(os.path.normpath(model / ".." / format))
    more: dict[str, Any] = {"quantize": quantize, "safe": safe, "audit": audit, "device": device, "graph": graph}
    if is_autoencoder(model):
        asked = [f"--{name}" for name, value in {**more, "shape": shape}.items() if value]
        _export_decoder(model, place, clip, check, asked + ["--format"] * (format != "coreml"), as_json)
        return
    stats = export_model(
        model,
        place,
        clip,
        shapes=[parse_shape(text) for text in shape or ()],
        parts=parts.split(","),
        check=check,
        tables=tables,
        format=format,
        tell=(lambda line: None) if as_json else say,
        **more,
    )
    emit(stats) if as_json else _tell_packages(stats)


def _export_decoder(model: Path, out: Path, clip: str, check: bool, asked: list[str], as_json: bool) -> None:
    """Export an autoencoder's decoder alone."""
    from nas.decoder.export import export_decoder

    if asked:
        raise NasError(f"{model} is an autoencoder, which is exported as it is; leave {', '.join(asked)} out")
    told = export_decoder(model, out, clip, check=check)
    emit(told) if as_json else _tell_halves(told)


def _tell_halves(stats: Mapping[str, Any]) -> None:
    """What the export of a decoder made, for people."""
    for name, half in stats.items():
        if isinstance(half, dict):
            shape = "x".join(map(str, next(iter(half["inputs"].values()))))
            tell(f"{name}.mlpackage: reads {shape}, {half['operations']} operations, {half['package_mb']:.2f} MB")
    tell(f"in {stats['seconds']} s and {stats['peak_host_mb']:.0f} MB of memory here")


def _tell_packages(stats: Mapping[str, Any]) -> None:
    """What an export made, for people."""
    from nas.export.telling import sentences

    if stats.get("format") == "coreai":
        from nas.export import coreai

        for line in coreai.sentences(stats):
            tell(line)
        return
    if "operations" in stats:
        tell(
            f"{stats['package']}: {stats['operations']} operations, {stats['fused_attention']} fused attentions, "
            f"{stats['weights_mb']:.2f} MB of weights, rank {stats['max_rank']}, {stats['seconds']} s, "
            f"{stats['peak_host_mb']:.0f} MB of memory here"
        )
    for name in ("text_encoder", "decoder"):
        if name in stats:
            end = stats[name]
            tell(f"{name}.mlpackage: {end['operations']} operations, {end['weights_mb']:.2f} MB of weights")
    for line in sentences(stats):
        tell(line)
    if "graph" in stats:
        tell(f"unet.graph: {', '.join(stats['graph'])}; open them in Google's Model Explorer")
    if stats["lowerings"]:
        layers = [f"{name} {'/'.join(wanted)}" for name, wanted in stats["lowerings"].items() if wanted]
        tell(f"lowered as predicted, which the table found fastest: {', '.join(layers)}")
    if stats["predicted"]:
        told = stats["predicted"]
        tell(f"{told['device']}: {told['latency_ms']} ms, {told['peak_mb']} MB predicted, {told['source']}")


@app.command()
def finetune(
    model: ModelDir,
    out: Annotated[
        Path, typer.Option(callback=below_root, help="Model folder to make; one that was begun is continued.")
    ],
    stage: Annotated[str, typer.Option(help="A recipe's name: joint, adversarial, or one of a package.")] = "joint",
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML of keys that override the defaults, or a name: one_step.")
    ] = None,
    set_: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. joint.steps=200.")
    ] = [],  # noqa: B006
    processes: Annotated[
        int | None, typer.Option(max=1024, help="Train with so many processes on this machine.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a built model into another by a recipe: joint, adversarial and others."""
    from nas.console import progress, say
    from nas.recipes import finetune as run_stage
    from nas.recipes.config import resolve_finetune

    settings = resolve_finetune(model, config, set_, stage)
    if processes is not None:
        from nas.training.launch import launch

        words = ["finetune", str(model), "--out", str(out), "--stage", stage]
        words += [*(["--config", str(config)] if config else []), *(word for text in set_ for word in ("--set", text))]
        launch([*words, *(["--json"] if as_json else [])], processes)
        return
    with progress(f"finetune {stage}") as shown:

        def step(done: int, row: Mapping[str, float]) -> None:
            shown(done, settings.stage(stage).steps, f"loss {row['loss']:.4f}")

        summary = run_stage(model, stage, settings, out, progress=step, warn=say)
    if summary["main"]:
        line = f"{summary['model']}: {stage}, {summary['steps']} steps"
        emit(summary) if as_json else tell("\n".join([line, *filter(None, [summary.get("motion_sentence")])]))


@app.command()
def prefer(
    model: ModelDir,
    out: Annotated[
        Path, typer.Option(callback=below_root, help="Folder of the preference set; one that is there is continued.")
    ],
    join: Annotated[list[Path] | None, typer.Option(help="Another set of the same making, taken over first.")] = None,
    config: Yaml = None,
    set_: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. clips=4 or kind=guided.")
    ] = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Clips of the same prompts and which of them is better: what `finetune --stage preference` learns from."""
    from nas.config import settle
    from nas.console import progress
    from nas.model.made_with import data_of
    from nas.preferences.config import PreferConfig
    from nas.preferences.making import make_set

    settings = settle(PreferConfig, data_of(model), config, set_)
    with progress("prefer") as shown:
        summary = make_set(model, settings, out, join=join or (), progress=shown)
    if as_json:
        emit(summary)
        return
    left = f", {summary['left_out']} labels did not survive swapping the order" if summary["left_out"] else ""
    tell(f"{summary['set']}: {summary['groups']} groups judged by {', '.join(summary['rewards'])}{left}")
    tell(f"look at them: {summary['page']}")


@app.command()
def sample(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder, or the packages of nas export.")],
    prompt: Annotated[list[str], typer.Option(help="What is shown; several make a batch, or one sheet of pictures.")],
    out: Annotated[
        Path | None,
        typer.Option(callback=a_file, help="Video file, a contact sheet PNG beside it; of pictures, a PNG. [out.mp4]"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=MOST_STEPS, help="Network evaluations; as the model was made for, or 25.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(callback=finite, help="Classifier-free guidance; 1 is off, the default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of the initial noise.")] = 0,
    frames: Annotated[int | None, typer.Option(min=1, max=LONG, help="Length; the training clip's by default.")] = None,
    height: Annotated[int | None, typer.Option(min=1, max=LONG, help="In pixels.")] = None,
    width: Annotated[int | None, typer.Option(min=1, max=LONG, help="In pixels.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that nas sample did not make.")] = False,
    as_json: Json = False,
) -> None:
    """A video file, or a sheet of pictures, from prompts."""
    from nas.console import progress, say
    from nas.model.sample import sample_video

    with progress("sample") as shown:
        summary = sample_video(
            model,
            prompt,
            out,
            steps=steps,
            guidance=guidance,
            seed=seed,
            frames=frames,
            height=height,
            width=width,
            overwrite=overwrite,
            warn=say,
            progress=shown,
        )
    if as_json:
        emit(summary)
        return
    if "picture" in summary:
        tell(summary["picture"])
    for made in summary.get("videos", ()):
        tell(f"{made['video']} and {made['contact_sheet']}")


@app.command()
def evaluate(
    model: ModelDir,
    config: Yaml = None,
    set_: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. clips=36.")
    ] = [],  # noqa: B006
    features: Annotated[Path | None, typer.Option(help="ONNX network for the Frechet distance.")] = None,
    vbench_out: Annotated[
        Path | None, typer.Option(callback=below_root, help="Write the folder of videos that VBench reads.")
    ] = None,
    vbench_prompts: Annotated[Path | None, typer.Option(help="Its prompts: VBench_full_info.json or lines.")] = None,
    vbench_results: Annotated[Path | None, typer.Option(help="Read VBench's *_eval_results.json back.")] = None,
    as_json: Json = False,
) -> None:
    """How good a model's videos are: pixels, Frechet distance, prompts on moving shapes; or the way to VBench."""
    from nas.console import progress
    from nas.evaluate import evaluate_model, render, resolve_evaluate, vbench_folder, vbench_scores

    only_once(set_, {"features": "--features"} if features else {})
    settings = resolve_evaluate(model, config, [*set_, *([f"features={features}"] if features else [])])
    if (vbench_out is None) != (vbench_prompts is None):
        raise NasError("--vbench-out and --vbench-prompts belong together; give both")
    with progress("evaluate") as shown:
        if vbench_results is not None:
            told = vbench_scores(model, vbench_results)
        elif vbench_out is not None and vbench_prompts is not None:
            told = vbench_folder(model, vbench_prompts, vbench_out, settings, shown)
        else:
            told = evaluate_model(model, settings, shown)
    emit(told) if as_json else tell(render(told))
