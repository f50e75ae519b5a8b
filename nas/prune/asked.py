"""What a pruning is asked for, and the folder that it is done in."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nas.config import CONFIG_FILE
from nas.errors import NasError, why_full
from nas.files import folder_beside, only_leftovers, read_yaml, write_whole
from nas.prune.config import PruneConfig, PruneSettings
from search_spaces.space import Space


@dataclass(frozen=True)
class Asked:
    """One pruning.

    Attributes:
        source: what is pruned. space: latents, text and clips, and what may be left. out: its folder.
        cost: what the target limits: ``parameters``, ``latency_ms`` or ``memory_mb``. target: None where the space's
            own frame is the goal. device, table: where costs come from. text: of data that is no cache.
    """

    source: str
    space: Space
    out: Path
    settings: PruneSettings
    cost: str
    target: float | None
    device: str
    table: Path
    text: str | None

    def facts(self) -> dict[str, Any]:
        """What a pruning that goes on must share."""
        return {
            "source": self.source,
            "space": self.space.fingerprint,
            "target": self.target,
            "cost": self.cost,
            "device": self.device,
        }


def check_folder(out: Path) -> None:
    """Whether a pruning may be written there.

    Raises:
        NasError: if something else is there.
    """
    if out.is_dir() and not (out / CONFIG_FILE).is_file() and not only_leftovers(out):
        raise NasError(f"{out} is not empty and holds no pruning; give a new or empty folder to --out")


def settle_folder(asked: Asked) -> None:
    """Write down what is asked for, or refuse a folder in which something else was.

    Raises:
        NasError: naming what differs.
    """
    out = asked.out
    path = out / CONFIG_FILE
    wanted = {"asked": asked.facts(), **asked.settings.model_dump(mode="json")}
    if path.is_file():
        try:
            known = read_yaml(path)
        except NasError as error:
            raise NasError(f"{error}; give a new folder to --out") from None
        if isinstance(known, dict) and isinstance(known.get("prune"), dict):  # settings that came since are as ever
            known = {**known, "prune": {**PruneConfig().model_dump(mode="json"), **known["prune"]}}
        differs = [
            k for k in wanted if not isinstance(known, dict) or known.get(k) != json.loads(json.dumps(wanted[k]))
        ]
        if differs:
            raise NasError(
                f"{out} holds another pruning ({', '.join(differs)} differ); give another --out, or the same"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_whole(path, yaml.safe_dump(json.loads(json.dumps(wanted)), sort_keys=False))


def save_network(network: Any, target: Path) -> None:
    """Write a diffusers model, whole or not at all."""
    from nas.pretrained.loading import no_bars

    with folder_beside(target) as partial:
        try:
            with no_bars():
                network.to("cpu").save_pretrained(str(partial))
        except Exception as error:
            full = why_full(error)
            if full is None:
                raise
            raise NasError(f"{target}: {full[0]}; {full[1]} and run the same command again") from error
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
