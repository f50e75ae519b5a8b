"""A toy diffusion transformer as another package would bring it: each place holds exactly one block."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces import blocks, families, registry
from search_spaces.blocks import BlockSpec
from search_spaces.errors import SpaceError
from search_spaces.families.contract import Layout, Mapped, Picture, Place, Preset, Row

if TYPE_CHECKING:
    import pytest
    from torch import Tensor, nn

    from search_spaces.families.contract import At, Watch

SPACE = """
name: toy
backbone: toy_dit
text: {tokens: 16}
clips: {training: {frames: 4, height: 16, width: 16, fps: 8}, deployment: {frames: 8, height: 32, width: 32, fps: 8}}
positions:
  block.0: &block
    least: 1
    max_layers: 1
    variants: ["Transformer(heads=1,ffn=8)", "Transformer(heads=2,ffn=8)", "Transformer(heads=2,ffn=16)"]
  block.1: *block
  block.2: *block
baseline:
  block.0: ["Transformer(heads=2,ffn=16)"]
  block.1: ["Transformer(heads=2,ffn=16)"]
  block.2: ["Transformer(heads=2,ffn=16)"]
"""


SIZES = {"in_channels": 3, "dim": 32, "depth": 3, "patch": 2}


class Toy:
    name = "toy"
    task = "denoise"
    presets: Mapping[str, Preset] = {
        "toy_dit": Preset({**SIZES, "context_dim": 32}, 16, "a toy"),
        "toy_plain": Preset({**SIZES, "context_dim": 0}, 0, "a toy that reads no text"),
    }

    def layout(self, config: Mapping[str, Any]) -> Layout:
        places = tuple(Place(f"block.{i}", config["dim"], config["patch"]) for i in range(config["depth"]))
        text = {"context": config["context_dim"]} if config["context_dim"] else {}
        return Layout({"x": config["in_channels"], **text}, places, embedding=config["dim"])

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        from toy_modules import Frame

        return Frame(**config)

    def run(self, frame: Any, inputs: Mapping[str, Any], at: At, watch: Watch | None = None) -> Tensor:
        see = watch or (lambda name, x, skips: None)
        embedding = frame.time(inputs["timestep"][:, None] / 1000)
        told = embedding + frame.text(inputs["context"]).mean(1) if frame.text else embedding
        beside = {name: inputs[name] for name in ("context",) if frame.text} | {"embedding": embedding}
        x = frame.enter(inputs["x"]) + told.repeat_interleave(inputs["frames"], 0)[:, :, None, None]
        see("enter", x, [])
        for index, mixer in enumerate(frame.mixers):
            x = mixer(x)
            see(f"block.{index}", x, [])
            x = at(f"block.{index}", x, beside)
        x = frame.leave(x)
        see("leave", x, [])
        return x

    def part(self, frame: nn.Module, name: str) -> nn.Module:
        raise SpaceError(f"a toy has no part {name!r}; it is measured whole")

    def units(self, frame: Any) -> Iterable[nn.Module]:
        return iter(frame.mixers)

    def features(self, frame: Any) -> Mapping[str, int]:
        return {f"block.{index}": mixer.out_channels for index, mixer in enumerate(frame.mixers)}

    def encoder(self, frame: nn.Module) -> nn.Module:
        return copy.deepcopy(frame)

    def givers(self) -> Mapping[str, type]:
        from toy_modules import Frame

        return {"Frame": Frame}

    def inherit(self, frame: nn.Module, given: nn.Module) -> Mapped:
        frame.load_state_dict(given.state_dict())
        count = sum(parameter.numel() for parameter in frame.parameters())
        return Mapped("", {name: name for name, _ in frame.named_children()}, (), count, count)

    def pruning(self) -> None:
        return None

    def picture(self, names: Sequence[str], skips: Mapping[str, str]) -> Picture:
        return Picture(tuple(Row(name) for name in names), "noisy clip, text, time", "velocity")


FAMILY = Toy()
TRANSFORMER = BlockSpec(
    "toy_modules:Transformer",
    {"heads": 2, "ffn": 16},
    frozenset({"embedding"}),
    "one transformer block",
    identity=False,
)


POINTS = (
    EntryPoint("toy", "toy_family:FAMILY", families.GROUP),
    EntryPoint("Transformer", "toy_family:TRANSFORMER", blocks.GROUP),
)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a package with these entry points were installed, in this process."""
    monkeypatch.setattr(registry, "entry_points", lambda group: [point for point in POINTS if point.group == group])


def write_package(folder: Path) -> Path:
    """Entry points as an installed package leaves them: with ``folder`` on its path, any process finds the family."""
    facts = folder / "toy-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    lines = [f"[{point.group}]\n{point.name} = {point.value}\n" for point in POINTS]
    (facts / "entry_points.txt").write_text("".join(lines))
    return folder


def write_space(folder: Path, plain: bool = False) -> Path:
    """The toy's space as a YAML; ``plain``: of the toy that reads no text."""
    path = folder / ("plain.yaml" if plain else "toy.yaml")
    text = SPACE.replace("text: {tokens: 16}\n", "").replace("toy_dit", "toy_plain").replace("name: toy", "name: plain")
    path.write_text(text if plain else SPACE)
    return path
