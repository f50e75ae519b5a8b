"""Commands of a decoder: distil-decoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from nas.cli.options import Config, Json, Set, app, below_root, emit, tell


@app.command("distil-decoder")
def distil_decoder(
    autoencoder: Annotated[str, typer.Argument(metavar="AUTOENCODER", help="Of diffusers: hub id or folder.")],
    out: Annotated[Path, typer.Option(callback=below_root, help="Folder to make; one that was begun is continued.")],
    space: Annotated[str, typer.Option(help="A space of decoders: a name, or a YAML.")] = "snapgen_v_decoder",
    arrangement: Annotated[Path | None, typer.Option(help="Its YAML; the space's baseline by default.")] = None,
    start: Annotated[Path | None, typer.Option(help="An earlier distillation, whose weights to begin with.")] = None,
    config: Config = None,
    set_: Set = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """A searched decoder for an encoder that stays: its encode is the old one, its decode the new one."""
    from nas.console import progress, say
    from nas.decoder.config import DistilSettings
    from nas.decoder.distil import distil_decoder as run
    from nas.settings import settle

    settings = settle(DistilSettings, {}, config, set_)
    with progress("distil") as shown:

        def step(done: int, row: Mapping[str, Any]) -> None:
            best = f", validation {row['validation']:.4f}" if row.get("validation") is not None else ""
            shown(done, settings.distil.steps, f"loss {row['loss']:.4f}{best}")

        summary = run(autoencoder, space, out, settings, arrangement=arrangement, start=start, progress=step, warn=say)
    if summary["main"]:
        line = f"{summary['model']}: a decoder of {summary['parameters']:,} parameters, {summary['steps']} steps"
        emit(summary) if as_json else tell(line)
