"""Pruning: what is cut is what is missed least, what is left is the source's own, and it recovers by distillation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from latent_fixtures import SPACE
from test_init import save_unet
from training_fixtures import clips

from latency_tables.table import Table
from nas.cli import main
from nas.errors import NasError
from nas.pretrained.given import inherit, load_given
from nas.pretrained.text import TextEncoder
from nas.prune import prune_network
from nas.prune.config import PruneSettings
from nas.prune.sensitivity import Sensitivity
from search_spaces.families import build_backbone
from search_spaces.families.unet import FAMILY, cuts
from search_spaces.families.unet.cuts import block_cuts, leads, narrowable, narrowed, width_cut
from search_spaces.families.unet.narrow import keep, prunable, width
from search_spaces.space import Space

PIXELS: dict[str, Any] = {
    **SPACE,
    "name": "pixels",
    "backbone": {
        "name": "sd15_pruned",
        "config": {
            **SPACE["backbone"]["config"],  # type: ignore[dict-item, index]
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": [8, 16, 32],
            "down_block_types": ["CrossAttnDownBlock2D"] * 3,
            "up_block_types": ["CrossAttnUpBlock2D"] * 3,
        },
    },
    "autoencoder": {"time": 1, "space": 1},
    "text": {"tokens": 16},
    "clips": {"deployment": {"frames": 4, "height": 16, "width": 16, "fps": 8}},
    "positions": {"down.0.0": {"max_layers": 1, "variants": ["Conv1D(kernel_size=3)"]}},
}
SD15 = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}


def space(folder: Path) -> Path:
    path = folder / "pixels.yaml"
    path.write_text(yaml.safe_dump(PIXELS))
    return path


def settings(**prune: Any) -> PruneSettings:
    torch.set_num_threads(1)
    few = {"steps": 0, "calibration": 4, "batch": 4, "images": 4, "checkpoint_every": 2, "ramp_steps": 1}
    return PruneSettings.model_validate({"data": {"source": "moving_shapes"}, "prune": {**few, "threads": 1, **prune}})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pipeline's folder: a UNet laid out as Stable Diffusion 1.5's, in pixels, and a text encoder."""
    folder = tmp_path_factory.mktemp("source")
    save_unet(folder / "unet", in_channels=3, out_channels=3, sample_size=16)
    path = folder / "pixels.yaml"
    path.write_text(yaml.safe_dump(PIXELS))
    torch.manual_seed(0)
    text = TextEncoder.small(Space.load(path), clips().captions)
    text.model.save_pretrained(folder / "text_encoder")  # type: ignore[operator, union-attr]
    text.tokenizer.save_pretrained(folder / "tokenizer")
    return str(folder)


def test_the_preset_is_what_pruning_stable_diffusion_to_its_space_gives() -> None:
    """No weights are needed to see which cuts lead from the 860M UNet to the 323M backbone."""
    from diffusers import UNet2DConditionModel

    goal = Space.load("snapgen_v")
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**SD15)  # type: ignore[arg-type]
        preset = build_backbone(goal.backbone)
        assert sum(p.numel() for p in unet.parameters()) == 859_520_964
        made = []
        for _ in range(5):
            cuts = [cut for cut in block_cuts(unet.config) if leads(_structure(cut, unet), goal.backbone.config)]
            made.append(cuts[0].name)
            unet = UNet2DConditionModel(**_structure(cuts[0], unet))
    assert sorted(made) == sorted(
        ["lowest of 4 stages", "mid block", "layer 2 of stage 0", "layer 2 of stage 1", "layer 2 of stage 2"]
    )
    mine = {name: tuple(p.shape) for name, p in unet.named_parameters()}
    assert mine == {name: tuple(p.shape) for name, p in preset.named_parameters()}


def _structure(cut: Any, unet: Any) -> dict[str, Any]:
    """The configuration that a cut makes, without its copying of weights."""
    return {key: value for key, value in {**unet.config, **cut.changed}.items() if not key.startswith("_")}


def test_with_no_target_the_space_s_own_backbone_comes_out_with_the_source_s_weights(
    source: str, tmp_path: Path
) -> None:
    told = prune_network(source, space(tmp_path), tmp_path / "out", settings())
    assert {step["cut"] for step in told["cuts"]} - {"layer 2 of stage 3"} == {
        "lowest of 4 stages",
        "mid block",
        "layer 2 of stage 0",
        "layer 2 of stage 1",
        "layer 2 of stage 2",
    }
    assert told["parameters"] < told["parameters_before"] and told["missed"] == told["missed_before_recovery"] > 0
    made = Space.load(told["space"])
    backbone = build_backbone(made.backbone)
    assert inherit(FAMILY, backbone, told["unet"]).copied == told["parameters"]
    direct = build_backbone(Space.load(space(tmp_path)).backbone)
    inherit(FAMILY, direct, source)
    pruned = load_given(FAMILY, told["unet"])
    assert all(torch.equal(p, q) for p, q in zip(pruned.parameters(), direct.parameters(), strict=True))


def test_each_cut_is_the_one_that_is_missed_least_for_what_it_saves(source: str, tmp_path: Path) -> None:
    whole = sum(p.numel() for p in load_given(FAMILY, source).parameters())
    told = prune_network(source, space(tmp_path), tmp_path / "out", settings(), parameters=0.6 * whole)
    assert told["parameters"] <= 0.6 * whole
    rows = [line.split(",") for line in (tmp_path / "out" / "sensitivity.csv").read_text().splitlines()[1:]]
    before, cost = 0.0, float(whole)
    for turn, step in enumerate(told["cuts"]):
        tried = [(r[1], float(r[2]), float(r[3])) for r in rows if int(r[0]) == turn and float(r[3]) < cost]
        prices = {name: (loss - before) / (cost - c) for name, loss, c in tried}
        assert prices[step["cut"]] == pytest.approx(min(prices.values()), rel=1e-4, abs=1e-12)
        before, cost = step["loss"], step["cost"]


@pytest.mark.slow  # test_prune_blocks.py stops and recovers a smaller one
def test_a_stopped_pruning_goes_on_and_ends_the_same(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sum(p.numel() for p in load_given(FAMILY, source).parameters())
    asked = {"parameters": 0.6 * whole}
    straight = prune_network(source, space(tmp_path), tmp_path / "straight", settings(steps=4), **asked)
    tries: list[Any] = []
    loss = Sensitivity.loss

    def stop(self: Sensitivity, unet: Any) -> float:
        tries.append(unet)
        if len(tries) == 20:
            raise KeyboardInterrupt
        return loss(self, unet)

    with monkeypatch.context() as patched:
        patched.setattr(Sensitivity, "loss", stop)
        with pytest.raises(KeyboardInterrupt):
            prune_network(source, space(tmp_path), tmp_path / "stopped", settings(steps=4), **asked)
    assert 1 <= len(json.loads((tmp_path / "stopped" / "cuts.json").read_text())) < len(straight["cuts"])
    again = prune_network(source, space(tmp_path), tmp_path / "stopped", settings(steps=4), **asked)
    assert [s["cut"] for s in again["cuts"]] == [s["cut"] for s in straight["cuts"]]
    assert again["missed"] == straight["missed"] != straight["missed_before_recovery"]
    tried = [(tmp_path / name / "sensitivity.csv").read_text() for name in ("straight", "stopped")]
    assert tried[0] == tried[1], "what was tried twice is noted once"
    with pytest.raises(NasError, match="holds another pruning"):
        prune_network(source, space(tmp_path), tmp_path / "stopped", settings(steps=4), parameters=0.5 * whole)


@pytest.mark.slow
def test_recovery_brings_the_answer_back(source: str, tmp_path: Path) -> None:
    told = prune_network(source, space(tmp_path), tmp_path / "out", settings(steps=60, learning_rate=3e-3))
    assert told["missed"] < 0.5 * told["missed_before_recovery"]


def test_heads_and_channels_meet_a_target_finely_and_are_stored(source: str, tmp_path: Path) -> None:
    whole = load_given(FAMILY, source)
    count = sum(p.numel() for p in whole.parameters())
    fine = settings(units=["heads", "channels"], share=0.1)
    told = prune_network(source, space(tmp_path), tmp_path / "out", fine, parameters=0.95 * count)
    assert 0.9 * count < told["parameters"] <= 0.95 * count
    pruned = load_given(FAMILY, told["unet"])
    assert type(pruned).__name__ == "NarrowUNet" and pruned.config.widths
    kept = {name: width(module) for name, module in prunable(pruned)}
    had = {name: width(module) for name, module in prunable(whole)}
    assert all(1 <= kept[name] <= had[name] for name in had) and kept != had
    # The space that was written builds the same network, and takes its weights.
    made = Space.load(told["space"])
    backbone = build_backbone(made.backbone)
    assert inherit(FAMILY, backbone, told["unet"]).copied == told["parameters"]


def test_a_head_that_does_nothing_is_the_first_to_go(source: str) -> None:
    unet = load_given(FAMILY, source)
    modules = dict(prunable(unet))
    dead = [name for name in modules if name.endswith("attn1")][1]
    size = modules[dead].inner_dim // modules[dead].heads
    with torch.no_grad():
        modules[dead].to_out[0].weight[:, :size] = 0
    generator = torch.Generator().manual_seed(0)
    batch = (torch.randn(2, 3, 16, 16, generator=generator), torch.tensor([100.0, 700.0]), torch.randn(2, 8, 16))
    sensitivity = Sensitivity(unet, [batch], cuts)
    scores = sensitivity.widths(unet, narrowable(unet), generator, draws=2)
    assert float(scores[dead][0]) == 0 and float(scores[dead][1]) > 0
    pruned = width_cut("heads", scores, 1e-9).make(unet)
    assert width(dict(prunable(pruned))[dead]) == 1
    assert sensitivity.loss(pruned) < 1e-9 and sensitivity.loss(unet) == 0


def test_the_second_order_scores_are_what_removing_really_costs(source: str) -> None:
    """Estimate against the real loss without that head, over all heads of the network."""
    import copy

    unet = load_given(FAMILY, source)
    generator = torch.Generator().manual_seed(0)
    batch = (torch.randn(4, 3, 16, 16, generator=generator), torch.full((4,), 300.0), torch.randn(4, 8, 16))
    sensitivity = Sensitivity(unet, [batch], cuts)
    scores = sensitivity.widths(unet, narrowable(unet), generator, draws=64)
    guessed, real = [], []
    for name, module in prunable(unet):
        if name.endswith("ff") or width(module) < 2:
            continue
        made = copy.deepcopy(unet)
        keep(made.get_submodule(name), torch.tensor([1]))
        real.append(sensitivity.loss(narrowed(made)))
        guessed.append(float(scores[name][0]))
    ranks = [torch.tensor(values).argsort().argsort().double() for values in (guessed, real)]
    assert float(torch.corrcoef(torch.stack(ranks))[0, 1]) > 0.7


ROOFLINE = "iphone16_pro_max_roofline"


def test_a_latency_is_a_row_of_the_devices_table(source: str, tmp_path: Path) -> None:
    asked = {"latency_ms": 1e9, "device": ROOFLINE, "table": tmp_path / "tables"}
    told = prune_network(source, space(tmp_path), tmp_path / "out", settings(), **asked)
    assert told["cuts"] == [] and told["cost"] == "latency_ms"
    (row,) = Table.load(tmp_path / "tables" / ROOFLINE / "roofline.csv")
    assert row.key.startswith("backbone:sd15_pruned-") and row.source == "estimated" and row.latency_ms_median


def test_a_latency_target_is_met_by_cuts_that_save_time(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever measures is stood in for: here a UNet takes a millisecond for every layer of its stages."""
    from device_profiler import profile

    def measure(path: Path, device: str, table: Path) -> Any:
        layers = Space.load(path).backbone.config["layers_per_block"]
        return SimpleNamespace(latency_ms_median=float(sum(layers) if isinstance(layers, list) else 4 * layers))

    monkeypatch.setattr(profile, "profile_backbone", measure)
    told = prune_network(source, space(tmp_path), tmp_path / "out", settings(), latency_ms=6.5)
    assert told["cuts"][-1]["cost"] <= 6.5 and {s["cut"][:5] for s in told["cuts"]} <= {"layer", "lowes"}
    with pytest.raises(NasError, match="no cut leads to 0.5 ms: 1 ms is the least of latency_ms that these units"):
        prune_network(source, space(tmp_path), tmp_path / "none", settings(), latency_ms=0.5)


def test_a_table_of_cuts_that_was_only_begun_is_begun_again(tmp_path: Path) -> None:
    from nas.prune.frame import _forget, _note

    path = tmp_path / "sensitivity.csv"
    path.write_text("")
    _forget(path, 0)
    _note(path, 0, "mid block", 0.5, 1e6, "parameters")
    _forget(path, 1)
    assert path.read_text().splitlines() == ["cuts_before,cut,missed,parameters", "0,mid block,0.5,1000000"]


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_one_line(device: str, source: str, tmp_path: Path) -> None:
    with pytest.raises(NasError, match=f"^prune.device: '{device}' cannot be used here"):
        prune_network(source, space(tmp_path), tmp_path / "out", settings(device=device))
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_one_line(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["prune", *arguments, "--set", "data.source=moving_shapes"])
        assert stop.value.code == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("nas: ") and "\n" not in error
        return error

    out = str(tmp_path / "out")
    pixels = str(space(tmp_path))
    assert "no such folder" in refused(str(tmp_path / "nothing"), "--space", pixels, "--out", out)
    assert "cross_attention_dim" in refused(source, "--space", "tiny", "--out", out)
    wide = tmp_path / "wide.yaml"
    config = {**PIXELS["backbone"]["config"], "block_out_channels": [8, 24, 32]}
    wide.write_text(yaml.safe_dump({**PIXELS, "backbone": {**PIXELS["backbone"], "config": config}}))
    said = refused(source, "--space", str(wide), "--out", out)
    assert "(8x2, 16x2, 32x2, 32x2) to those of space pixels (8x1, 24x1, 32x1)" in said
    both = ("--parameters", "1e6", "--latency-ms", "5")
    assert "two targets" in refused(source, "--space", pixels, "--out", out, *both)
    unet = str(Path(source) / "unet")
    assert "--text" in refused(unet, "--space", pixels, "--out", out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    assert "not empty" in refused(source, "--space", pixels, "--out", str(tmp_path / "full"))
    assert "prune.unit" in refused(source, "--space", pixels, "--out", out, "--set", "prune.unit=[heads]")
