"""Commands that train: cache, prune, train, rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import (
    DONE,
    MANY,
    NO,
    Config,
    Json,
    Out,
    RunDir,
    Scoring,
    Set,
    Yaml,
    app,
    below_root,
    emit,
    finite,
    only_once,
    tell,
)


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
    from nas.run.job import cache_latents

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
    source: Annotated[
        str, typer.Argument(metavar="NETWORK", help="diffusers model or pipeline: hub id or folder; or a run's folder.")
    ],
    out: Annotated[
        Path, typer.Option(callback=below_root, help="Folder of the pruned network; one that was begun is continued.")
    ],
    space: Annotated[
        str, typer.Option(help="Latents, text and clips; without a target, the backbone too.")
    ] = "snapgen_v",
    parameters: Annotated[float | None, typer.Option(callback=finite, help="Target, e.g. 330e6.")] = None,
    latency_ms: Annotated[
        float | None, typer.Option(callback=finite, help="Target: latency of the backbone on --device.")
    ] = None,
    memory_mb: Annotated[
        float | None, typer.Option(callback=finite, help="Target: peak memory of the whole network, for blocks.")
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
    """A small network from a large one: cut what it misses least, then recover by distillation."""
    from nas.config import settle
    from nas.prune import prune_network
    from nas.prune.config import PruneSettings
    from nas.prune.prune import render

    settings = settle(PruneSettings, {}, config, set_)
    told = prune_network(
        source,
        space,
        out,
        settings,
        parameters=parameters,
        latency_ms=latency_ms,
        memory_mb=memory_mb,
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
    init: Annotated[str | None, typer.Option(help="Start from a given diffusers network: hub id, folder.")] = None,
    processes: Annotated[
        int | None, typer.Option(max=1024, help="Train with so many processes on this machine.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take, in memory, disk and days; write nothing.")
    ] = False,
    on: Annotated[
        str, typer.Option(help="Whose days --dry-run tells: a shipped roofline device's name, or a YAML.")
    ] = "h100_roofline",
    as_json: Json = False,
) -> None:
    """Train the supernet; run again to go on from the last checkpoint."""
    from nas.config import resolve
    from nas.run.job import train_supernet

    only_once(set_, {"train.init": "--init"} if init is not None else {})
    sets = [*set_, *([f"train.init={json.dumps(init)}"] if init is not None else [])]
    settings = resolve(space, device, config, sets)
    if dry_run:
        from nas.run.dry import dry_run as look_ahead

        told = look_ahead(settings, out, on, processes or 1)
        emit(told.to_json()) if as_json else tell(told.render())
        return
    if processes is not None:
        from nas.training.launch import launch

        words = ["train", space, "--out", str(out), *(["--device", device] if device else [])]
        words += [*(["--config", str(config)] if config else []), *(word for text in sets for word in ("--set", text))]
        launch([*words, *(["--json"] if as_json else [])], processes)
        return
    summary = train_supernet(settings, out)
    if summary["main"]:
        line = f"{out / 'supernet'}: {summary['steps']} steps; best checkpoint: {summary['best']}"
        emit(summary) if as_json else tell(line)


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
    from nas.ranking.scores import rank as rank_run
    from nas.ranking.scores import with_scoring
    from nas.run.costs import make_problem

    config = with_scoring(load(run), scoring)
    found = rank_run(config, run, make_problem(config, run), count=arrangements, steps=steps)
    emit(found.to_json()) if as_json else tell(found.sentence)
    raise typer.Exit(DONE if found.told_from_chance else NO)
