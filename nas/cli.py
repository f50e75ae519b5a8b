"""The `nas` command. Each command is a few lines: parse, call one function, print. Heavy imports wait until then."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from device_profiler.threads import share_cores
from nas.errors import AnswerIsNo, NasError, explain
from nas.options import (
    LONG,
    MANY,
    MAX_SEED,
    MOST_STEPS,
    Config,
    Json,
    ModelDir,
    Out,
    RunDir,
    Scoring,
    Set,
    Storage,
    Workers,
    Yaml,
    a_file,
    below_root,
    finite,
)

app = typer.Typer(
    name="nas",
    help="Hardware-aware search for the temporal layers of mobile video diffusion models.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
space_app = typer.Typer(help="Positions, variants, size of a space.", no_args_is_help=True, rich_markup_mode=None)

DONE, NO, WRONG_USE, FAULT, STOPPED = 0, 1, 2, 70, 130
USAGE_ERROR: Any = typer.BadParameter.__mro__[2]  # the base of whatever click typer is built on


def tell(text: object) -> None:
    """Print for a person: without a stranger's escapes, and without complaint where nobody reads on."""
    from latency_tables.terminal import tell as print_plain

    print_plain(text)


def only_once(sets: Sequence[str], said: Mapping[str, str]) -> None:
    """Refuse a ``--set`` of what another word of the command says already: one of the two would be lost.

    Args:
        said: key -> the option or argument that says it.
    """
    for text in sets:
        key = text.partition("=")[0]
        if key in said:
            raise NasError(f"--set {text}: {said[key]} says that already; leave one of them out")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def emit(data: Any) -> None:
    """Print one JSON document."""
    tell(json.dumps(data, indent=2, default=str))


# The main job --------------------------------------------------------------------------------------


@app.command(rich_help_panel=None)
def run(
    space: Annotated[str, typer.Argument(help="A shipped space's name, or a YAML.")],
    out: Out,
    device: Annotated[str | None, typer.Option(help="A shipped device's name, or a YAML.")] = None,
    config: Config = None,
    set_: Set = [],  # noqa: B006 - typer reads the default, nobody mutates it
    workers: Workers = 1,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """The whole main job, resumable: profile, train, search, build, export, sample, report."""
    from nas.config import resolve
    from nas.run import run_all

    metrics = run_all(resolve(space, device, config, set_), out, workers=workers, storage=storage)
    if as_json:
        emit(metrics)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine has: runtimes, devices, extras, versions."""
    from nas.doctor import examine, render

    findings = examine()
    emit(findings) if as_json else tell(render(findings))


# What may be chosen, what it costs -----------------------------------------------------------------


@space_app.command("list")
def space_list(as_json: Json = False) -> None:
    """The spaces that ship with the toolkit."""
    from search_spaces.inspect import summaries

    found = summaries()
    if as_json:
        emit([s.to_json() for s in found])
    else:
        for s in found:
            tell(s.line())


@space_app.command("show")
def space_show(space: str, as_json: Json = False) -> None:
    """Positions, variants, size of the space and its parameter range, read from the plan."""
    from search_spaces.inspect import summary

    found = summary(space)
    emit(found.to_json()) if as_json else tell(found.render())


@space_app.command("check")
def space_check(space: str, as_json: Json = False) -> None:
    """Check a space against its blocks and its plan; exit code 1 when something is wrong."""
    from search_spaces.inspect import check

    problems = check(space)
    if as_json:
        emit({"space": space, "problems": problems})
    else:
        tell("\n".join(problems) or f"{space}: everything holds")
    raise typer.Exit(NO if problems else DONE)


app.add_typer(space_app, name="space")


@app.command()
def profile(
    space: Annotated[str | None, typer.Argument(help="A shipped space's name, or a YAML.")] = None,
    device: Annotated[str, typer.Option(help="A shipped device's name, or a YAML.")] = "host_cpu",
    table: Annotated[Path, typer.Option(help="Folder of the tables.")] = Path("tables"),
    retry: Annotated[bool, typer.Option("--retry", help="Measure rows without a number again.")] = False,
    spatial: Annotated[bool, typer.Option("--spatial", help="The backbone's parts too, each by itself.")] = False,
    block: Annotated[str | None, typer.Option(help="One operator instead of a space, e.g. Conv3D.")] = None,
    shape: Annotated[str | None, typer.Option(help="Its input, CxTxHxW, e.g. 320x30x64x64.")] = None,
    lowering: Annotated[
        list[str] | None,
        typer.Option(
            help="How blocks are lowered, e.g. fused+conv1x1; several, or all: the table answers with the best."
        ),
    ] = None,
    networks: Annotated[
        int | None,
        typer.Option(max=1000, help="Measure so many whole networks too: how far sums are off, and a correction."),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Measure with all workers of this dask scheduler, e.g. tcp://host:8786.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure what the table lacks of a space, or one operator; run again to go on after a stop."""
    from nas.costs import audit_space, profile_operator, profile_space, render_parts

    if spatial and space is None:
        raise NasError("--spatial measures the parts of a SPACE's backbone; name one, or leave it out")
    if (space is None) == (block is None) or (block is None) != (shape is None):
        raise NasError("profile takes a SPACE, or --block and --shape of one operator; give the one or the other")
    if networks is not None:
        if space is None:
            raise NasError("--networks measures networks of a SPACE; name one, or leave it out")
        if lowering:
            raise NasError("--networks lowers whole networks in the device's own way; leave --lowering out")
        for name, given in (("--retry", retry), ("--spatial", spatial), ("--scheduler", scheduler is not None)):
            if given:
                raise NasError(f"--networks measures a space's rows and whole networks here, anew; leave {name} out")
        audited = audit_space(space, device, table, networks)
        failed = audited["additivity"].get("failed", [])
        emit(audited) if as_json else tell("\n".join([audited["message"], *(f"left out: {f}" for f in failed)]))
        return
    if scheduler is not None and space is None:
        raise NasError("--scheduler measures a whole SPACE; measure an operator without it")
    if block is not None and shape is not None:
        summary = profile_operator(block, shape, device, table, retry=retry, lowerings=lowering or ())
    else:
        summary = profile_space(
            str(space), device, table, retry=retry, scheduler=scheduler, lowerings=lowering or (), spatial=spatial
        )
    if as_json:
        emit(summary)
    else:
        tell(
            f"{summary['table']}: {summary['rows']} rows ({summary['source']}), {summary['new']} of them new, "
            f"{summary['not_ok']} without a number"
            + (f"; {summary['latency_ms']:.3f} ms, {summary['peak_mb']:.1f} MB" if summary.get("latency_ms") else "")
        )
        if summary.get("spatial"):
            tell(render_parts(summary["spatial"], summary["backbone_ms"]))


@app.command()
def worker(
    scheduler: Annotated[str, typer.Argument(help="Address that dask scheduler printed, e.g. tcp://host:8786.")],
    device: Annotated[str, typer.Option(help="The device that this process owns: a name, or a YAML.")] = "host_cpu",
    cache: Annotated[Path, typer.Option(help="Folder of lowered files.")] = Path("tables/.cache"),
    trusted_network: Annotated[
        bool,
        typer.Option("--trusted-network", help="Listen beyond this machine without TLS; whoever connects runs code."),
    ] = False,
) -> None:
    """Own one device of a fleet and measure what nas profile --scheduler asks for, until stopped."""
    from device_profiler.fleet import serve

    ready = lambda name: tell(f"{name}: ready for {scheduler}; stop it with Ctrl-C")  # noqa: E731
    serve(scheduler, device, cache, ready, trusted_network=trusted_network)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def table(context: typer.Context) -> None:
    """Tables: list, show, validate, coverage, predict and more (nas table --help)."""
    from latency_tables.cli import main as table_main

    raise typer.Exit(table_main(context.args))


# Train, search, build ------------------------------------------------------------------------------


@app.command()
def cache(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of videos and captions, or webdataset shards.")],
    out: Annotated[Path, typer.Option(callback=below_root, help="Folder of the cache; an existing one is continued.")],
    autoencoder: Annotated[str, typer.Option(help="One of diffusers' autoencoders: hub id or folder.")],
    text: Annotated[str, typer.Option(help="CLIP text model: hub id or folder.")],
    space: Annotated[str, typer.Option(help="The space that will be trained on it.")] = "snapgen_v",
    stills: Annotated[int, typer.Option(min=0, max=1000, help="Single frames encoded as images, a training clip.")] = 1,
    shard_mb: Annotated[
        float, typer.Option(min=0.001, max=1e6, callback=finite, help="Size from which on a shard is written.")
    ] = 256.0,
    config: Config = None,
    set_: Set = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Videos and captions to latents and text states on disk; run again to go on after a stop."""
    from nas.run import cache_latents

    only_once(set_, {"data.source": "DATA", "data.path": "DATA"})
    models = {"autoencoder": autoencoder, "text": text, "stills": stills, "shard_mb": shard_mb}
    summary = cache_latents(data, space, out, config, set_, models)
    emit(summary) if as_json else tell(
        f"{summary['cache']}: {summary['clips']} clips ({summary['validation_clips']} for validation) and "
        f"{summary['stills']} stills of {summary['videos']} files, {summary['mb']:.1f} MB, "
        f"{len(summary['skipped'])} skipped"
    )


@app.command()
def prune(
    source: Annotated[str, typer.Argument(metavar="UNET", help="diffusers UNet or pipeline: hub id or folder.")],
    out: Annotated[
        Path, typer.Option(callback=below_root, help="Folder of the pruned UNet; one that was begun is continued.")
    ],
    space: Annotated[
        str, typer.Option(help="Latents, text and clips; without a target, the backbone too.")
    ] = "snapgen_v",
    parameters: Annotated[float | None, typer.Option(callback=finite, help="Target, e.g. 330e6.")] = None,
    latency_ms: Annotated[
        float | None, typer.Option(callback=finite, help="Target: latency of the backbone on --device.")
    ] = None,
    device: Annotated[str, typer.Option(help="Whose latency: a shipped device's name, or a YAML.")] = "host_cpu",
    table: Annotated[Path, typer.Option(help="Folder of the tables.")] = Path("tables"),
    text: Annotated[str | None, typer.Option(help="CLIP text model, where the data is no cache.")] = None,
    config: Yaml = None,
    set_: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. prune.steps=500.")
    ] = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """A small backbone from a large UNet: cut what it misses least, then recover by distillation."""
    from nas.config import settle
    from nas.prune import prune_unet
    from nas.prune.config import PruneSettings
    from nas.prune.prune import render

    settings = settle(PruneSettings, {}, config, set_)
    told = prune_unet(
        source,
        space,
        out,
        settings,
        parameters=parameters,
        latency_ms=latency_ms,
        device=device,
        table=table,
        text=text,
    )
    emit(told) if as_json else tell(render(told))


@app.command()
def train(
    space: Annotated[str, typer.Argument(help="A shipped space's name, or a YAML.")],
    out: Out,
    device: Annotated[str | None, typer.Option(help="The device that the run is for; kept in its config.")] = None,
    config: Config = None,
    set_: Set = [],  # noqa: B006
    init: Annotated[str | None, typer.Option(help="Start the backbone from a diffusers UNet: hub id, folder.")] = None,
    processes: Annotated[
        int | None, typer.Option(max=1024, help="Train with so many processes on this machine.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train the supernet; run again to go on from the last checkpoint."""
    from nas.config import resolve
    from nas.run import train_supernet

    only_once(set_, {"train.init": "--init"} if init is not None else {})
    sets = [*set_, *([f"train.init={json.dumps(init)}"] if init is not None else [])]
    settings = resolve(space, device, config, sets)
    if processes is not None:
        from nas.launch import launch

        words = ["train", space, "--out", str(out), *(["--device", device] if device else [])]
        words += [*(["--config", str(config)] if config else []), *(word for text in sets for word in ("--set", text))]
        launch([*words, *(["--json"] if as_json else [])], processes)
        return
    summary = train_supernet(settings, out)
    if summary["main"]:
        line = f"{out / 'supernet'}: {summary['steps']} steps; best checkpoint: {summary['best']}"
        emit(summary) if as_json else tell(line)


@app.command()
def search(
    run: RunDir,
    latency_ms: Annotated[
        float | None, typer.Option(callback=finite, help="Latency limit of one network evaluation.")
    ] = None,
    memory_mb: Annotated[float | None, typer.Option(callback=finite, help="Limit of the peak memory.")] = None,
    parameters_min: Annotated[
        float | None, typer.Option(callback=finite, help="Least parameters of the network, e.g. 550e6.")
    ] = None,
    parameters_max: Annotated[
        float | None, typer.Option(callback=finite, help="Most parameters of the network.")
    ] = None,
    trials: Annotated[int | None, typer.Option(max=MANY, help="Search trials in all.")] = None,
    sampler: Annotated[str | None, typer.Option(help="surrogate, value, nsga2, tpe, gp or random.")] = None,
    workers: Workers = 1,
    storage: Storage = None,
    study: Annotated[str | None, typer.Option(help="Name of the study in --storage; space and device else.")] = None,
    scoring: Scoring = None,
    set_: Annotated[
        list[str], typer.Option("--set", metavar="search.KEY=VALUE", help="Another setting, e.g. search.margin=0.")
    ] = [],  # noqa: B006
    explain: Annotated[bool, typer.Option("--explain", help="Say why: positions, limits, designs by hand.")] = False,
    helper_of: Annotated[int | None, typer.Option(hidden=True)] = None,
    as_json: Json = False,
) -> None:
    """Choose the arrangement under the budget; exit code 1 when nothing can meet it."""
    from nas.run import search_arrangement

    said: dict[str, object] = {"latency_ms": latency_ms, "memory_mb": memory_mb, "trials": trials, "sampler": sampler}
    said |= {"parameters_min": parameters_min, "parameters_max": parameters_max, "scoring": scoring}
    only_once(set_, {f"search.{name}": _option(name) for name, value in said.items() if value is not None})
    answer = search_arrangement(
        run,
        latency_ms=latency_ms,
        memory_mb=memory_mb,
        parameters_min=parameters_min,
        parameters_max=parameters_max,
        trials=trials,
        sampler=sampler,
        workers=workers,
        storage=storage,
        study=study,
        scoring=scoring,
        sets=set_,
        helper_of=helper_of,
    )
    if helper_of is not None:
        return
    emit(answer.to_json()) if as_json else tell(answer.render())
    if explain and answer.reasons and not as_json:
        tell(f"\n{answer.reasons}")
    raise typer.Exit(DONE if answer.feasible else NO)


@app.command()
def dashboard(
    run: RunDir,
    storage: Storage = None,
    host: Annotated[str, typer.Option(help="Address to serve at; 0.0.0.0 is every one of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
) -> None:
    """The run's studies in a browser, through optuna-dashboard, until stopped."""
    from nas.search.dashboard import serve

    serve(storage or run / "study.journal", host, port, lambda at: tell(f"{at}  stop it with Ctrl-C"))


@app.command()
def rank(
    run: RunDir,
    arrangements: Annotated[int, typer.Option(max=1000, help="How many to train alone.")] = 12,
    steps: Annotated[int, typer.Option(max=MANY, help="Training steps of each.")] = 300,
    scoring: Scoring = None,
    as_json: Json = False,
) -> None:
    """Can the order of the scores be believed? Train some arrangements alone; exit code 1 if it may be chance."""
    from nas.config import load
    from nas.run import make_problem
    from nas.scores import rank as rank_run
    from nas.scores import with_scoring

    config = with_scoring(load(run), scoring)
    found = rank_run(config, run, make_problem(config, run), count=arrangements, steps=steps)
    emit(found.to_json()) if as_json else tell(found.sentence)
    raise typer.Exit(DONE if found.told_from_chance else NO)


@app.command()
def build(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="Run folder, for its supernet's weights.")] = None,
    out: Annotated[Path | None, typer.Option(callback=below_root, help="Model folder; RUN/model by default.")] = None,
    space: Annotated[str | None, typer.Option(help="Without a run: a shipped space's name, or a YAML.")] = None,
    arrangement: Annotated[Path | None, typer.Option(help="Without a run: the arrangement's YAML.")] = None,
    text: Annotated[str | None, typer.Option(help="Without a run: CLIP text model, hub id or folder.")] = None,
    autoencoder: Annotated[str | None, typer.Option(help="Without a run, for latents: hub id or folder.")] = None,
    init: Annotated[str | None, typer.Option(help="Without a run: the UNet that the backbone starts from.")] = None,
    prediction: Annotated[
        str | None,
        typer.Option(help="Without a run: what its weights answer: velocity, epsilon (Stable Diffusion 1.5) or v."),
    ] = None,
    as_json: Json = False,
) -> None:
    """An arrangement as a plain diffusers model: a run's chosen one with its weights, or any over an image backbone."""
    from nas.build import build_anew, build_model

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
    alone = {**anew, "--autoencoder": autoencoder, "--init": init, "--prediction": prediction}
    given = [name for name, value in alone.items() if value is not None]
    if given:
        raise NasError(f"{run} has a space, weights and text of its own; leave {', '.join(given)} out")
    summary = build_model(run, out or run / "model")
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
        typer.Option(
            metavar="FRAMESxHEIGHTxWIDTH", help="In place of a clip; several become functions of one package."
        ),
    ] = None,
    parts: Annotated[str, typer.Option(help="Of network, text_encoder and decoder.")] = "network,text_encoder,decoder",
    quantize: Annotated[
        str | None, typer.Option(help="Weights in fewer bits: int8, palettize8, palettize6 or palettize4.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Whose table predicts the costs in the metadata, and picks each layer's form.")
    ] = None,
    tables: Annotated[Path, typer.Option("--table", help="Folder of tables.")] = Path("tables"),
    as_json: Json = False,
) -> None:
    """Core ML packages of the network, its text encoder and its decoder."""
    from nas.console import say
    from nas.export import export_model
    from nas.export.network import parse_shape

    stats = export_model(
        model,
        out or Path(os.path.normpath(model / ".." / "coreml")),
        clip,
        shapes=[parse_shape(text) for text in shape or ()],
        parts=parts.split(","),
        quantize=quantize,
        device=device,
        tables=tables,
        tell=(lambda line: None) if as_json else say,
    )
    if as_json:
        emit(stats)
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
    stage: Annotated[str, typer.Option(help="joint: images and videos. adversarial: to a few steps.")] = "joint",
    config: Yaml = None,
    set_: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. joint.steps=200.")
    ] = [],  # noqa: B006
    processes: Annotated[
        int | None, typer.Option(max=1024, help="Train with so many processes on this machine.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a built model into another: on images and videos together, or adversarially down to four steps."""
    from nas.console import progress, say
    from nas.finetune import finetune as run_stage
    from nas.finetune.config import resolve_finetune

    settings = resolve_finetune(model, config, set_)
    if processes is not None:
        from nas.launch import launch

        words = ["finetune", str(model), "--out", str(out), "--stage", stage]
        words += [*(["--config", str(config)] if config else []), *(word for text in set_ for word in ("--set", text))]
        launch([*words, *(["--json"] if as_json else [])], processes)
        return
    with progress(f"finetune {stage}") as shown:

        def step(done: int, row: Mapping[str, float]) -> None:
            shown(done, settings.stage(stage).steps, f"loss {row['loss']:.4f}")

        summary = run_stage(model, stage, settings, out, progress=step, warn=say)
    if summary["main"]:
        emit(summary) if as_json else tell(f"{summary['model']}: {stage}, {summary['steps']} steps")


@app.command()
def sample(
    model: ModelDir,
    prompt: Annotated[list[str], typer.Option(help="What the video shows; several make a batch.")],
    out: Annotated[
        Path, typer.Option(callback=a_file, help="Video file; a contact sheet PNG is written beside it.")
    ] = Path("out.mp4"),
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
    """A video file from a prompt."""
    from nas.console import progress, say
    from nas.sample import sample_video

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
    for made in summary["videos"]:
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


@app.command()
def report(run: RunDir) -> None:
    """One self-contained HTML page of a run."""
    from nas.report import write_report

    tell(write_report(run))


# Errors -------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: one clear line and exit code 2 for wrong use or bad input; a traceback only with --debug."""
    share_cores()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    try:
        code = _run(arguments)
    except Exception as error:  # the one place where exceptions become sentences
        from latency_tables.terminal import fault, warn

        if debug:
            warn("".join(traceback.format_exception(error)).rstrip())
        sentence = explain(error)
        warn(f"nas: {fault(error) if sentence is None else sentence}")
        code = FAULT if sentence is None else NO if isinstance(error, AnswerIsNo) else WRONG_USE
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BrokenPipeError:
        from latency_tables.terminal import settle

        settle()
    raise SystemExit(code)


def _run(arguments: list[str]) -> int:
    """Run the command and give its exit code; exceptions of its own pass."""
    if any("\0" in word for word in arguments):
        raise NasError("an argument holds a NUL character, which no file, path or text has; leave it out")
    try:
        code = app(args=arguments, standalone_mode=False) or DONE
    except USAGE_ERROR as error:
        if not arguments or type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            return WRONG_USE
        of = f"; see {error.ctx.command_path} --help" if error.ctx is not None else ""
        raise NasError(" ".join(error.format_message().split()).rstrip(".") + of) from None
    except (KeyboardInterrupt, typer.Abort) as stop:
        if isinstance(stop.__cause__, EOFError):  # of a file that ends too early; typer takes it for a closed terminal
            raise stop.__cause__ from None
        code = STOPPED
    except SystemExit as stop:  # typer's own answer to an interrupt, or to a reader of the help who left
        code = DONE if type(sys.stdout).__name__ == "PacifyFlushWrapper" else int(stop.code or DONE)
    if code == STOPPED:
        from latency_tables.terminal import warn

        warn("nas: stopped; run the same command to go on from here")
    return int(code)


if __name__ == "__main__":
    main()
