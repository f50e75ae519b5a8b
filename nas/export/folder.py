"""The folder of a model's packages: what an earlier export left there, and how a new one takes its place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.errors import NasError
from nas.files import write_whole
from nas.outputs import MADE_BY, check_replaceable, keep_rest, put_folder

FACTS = "export.json"
SUFFIXES = {"coreml": ".mlpackage", "coreai": ".aimodel"}
NETWORK, ENDS = "network", ("text_encoder", "decoder")
PARTS = (NETWORK, *ENDS)
FILES = {NETWORK: "unet", **{end: end for end in ENDS}}  # part -> its package's name without the suffix


def check_parts(parts: Sequence[str]) -> None:
    """Refuse parts that a model does not have.

    Raises:
        NasError: naming those that it has.
    """
    if not parts or any(name not in PARTS for name in parts):
        raise NasError(f"--parts {','.join(parts)}: must be of {', '.join(PARTS)}")


def exported(out: Path, kind: str = "coreml") -> dict[str, Any]:
    """What an earlier export told of the packages in ``out``; empty for a new folder.

    Raises:
        NasError: if it holds something else or packages of the other format, or the file is damaged.
    """
    path = out / FACTS
    check_replaceable(out, lambda folder: (folder / FACTS).is_file(), "export")
    if not path.is_file():
        return {}
    try:
        told = dict(json.loads(path.read_text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise NasError(f"{path}: damaged ({error}); give another --out, or delete that folder") from None
    if told.get("made_by", MADE_BY) != MADE_BY or "weights" not in told:
        raise NasError(f"{path}: not written by nas export; give another --out")
    if told.get("format", "coreml") != kind:
        raise NasError(f"{out} holds packages of --format {told.get('format', 'coreml')}; give another --out")
    return told


def refuse_other_models(
    out: Path, before: Mapping[str, Any], weights: str, parts: Sequence[str], kind: str = "coreml"
) -> None:
    """Packages that are not made anew must be of the same model: an app would load all of them together.

    Raises:
        NasError: naming those of another one.
    """
    made = {f"{FILES[part]}{SUFFIXES[kind]}" for part in parts}
    left = sorted(package.name for package in out.glob(f"*{SUFFIXES[kind]}") if package.name not in made)
    if left and before.get("weights", weights) != weights:
        raise NasError(f"{out} holds {', '.join(left)} of another model; export all parts anew, or give another --out")


def put(partial: Path, out: Path, facts: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Have ``partial`` stand at ``out``, whose other packages and facts go on in it.

    The two folders are exchanged at one stroke: whenever this is killed, what ``export.json`` tells of lies there
    whole.
    """
    made = {package.stem for package in partial.iterdir() if package.suffix in SUFFIXES.values()}
    drawn = {folder.name for folder in partial.glob("*.graph")}
    stays = {name: told for name, told in before.items() if (name if name in ENDS else FILES[NETWORK]) not in made}
    keep_rest(out, partial)
    for name in made:  # the graph of a package that is no more
        if f"{name}.graph" not in drawn:
            shutil.rmtree(partial / f"{name}.graph", ignore_errors=True)
    write_whole(partial / FACTS, json.dumps({**facts, **stays}, indent=1))
    put_folder(partial, out)
    shutil.rmtree(partial, ignore_errors=True)
