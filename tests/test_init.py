"""A backbone from somebody's UNet: what matches is copied, the rest is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from latent_fixtures import small_space
from training_fixtures import clips, run, short, tiny

from nas.errors import NasError
from nas.pretrained.given import inherit
from nas.supernet.stage import begin
from nas.training.checkpoint import list_checkpoints, load_checkpoint
from search_spaces.families import build_backbone
from search_spaces.families.unet import FAMILY


def save_unet(folder: Path, **changes: Any) -> str:
    """A UNet laid out as Stable Diffusion 1.5's: four stages of two layers, a mid block, no attention at the bottom."""
    torch.manual_seed(3)
    config: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "block_out_channels": [8, 16, 32, 32],
        "layers_per_block": 2,
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    UNet2DConditionModel(**{**config, **changes}).save_pretrained(str(folder))
    return str(folder)


def pruned(folder: Path) -> Any:
    """Three stages of one layer and no mid block, as the pruned backbone."""
    import yaml
    from latent_fixtures import SPACE

    from search_spaces.space import Space

    space = small_space(folder)
    assert space.backbone.config["layers_per_block"] == 1
    three = {
        "block_out_channels": [8, 16, 32],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3,
        "up_block_types": ["CrossAttnUpBlock2D"] * 3,
    }
    spec: dict[str, Any] = {
        **SPACE,
        "backbone": {**SPACE["backbone"], "config": {**SPACE["backbone"]["config"], **three}},
    }  # type: ignore[dict-item]
    path = folder / "three.yaml"
    path.write_text(yaml.safe_dump(spec))
    return build_backbone(Space.load(str(path)).backbone)


def test_every_block_of_the_pruned_backbone_comes_from_its_counterpart(tmp_path: Path) -> None:
    source = save_unet(tmp_path / "unet")
    backbone = pruned(tmp_path)
    found = inherit(FAMILY, backbone, source)
    assert found.copied == found.total and not found.fresh and not found.notes
    assert found.blocks["down_blocks.2.resnets.0"] == "down_blocks.2.resnets.0"
    # Of three up resnets a stage, those stay whose inputs have the widths of the pruned skips.
    assert found.blocks["up_blocks.0.resnets.0"] == "up_blocks.1.resnets.0"
    assert found.blocks["up_blocks.0.resnets.1"] == "up_blocks.1.resnets.2"
    assert found.blocks["up_blocks.0.attentions.1"] == "up_blocks.1.attentions.2"
    assert found.blocks["up_blocks.2.resnets.1"] == "up_blocks.3.resnets.2"
    given = UNet2DConditionModel.from_pretrained(source)
    mine, theirs = backbone.state_dict(), given.state_dict()
    for name, other in found.blocks.items():
        for key in (key for key in mine if key.startswith(f"{name}.")):
            assert torch.equal(mine[key], theirs[other + key[len(name) :]])
    assert "100%" in found.sentence() and "\n" not in found.sentence()


def test_what_does_not_match_keeps_its_start_and_is_named(tmp_path: Path) -> None:
    source = save_unet(tmp_path / "unet", in_channels=9, attention_head_dim=4)
    backbone = pruned(tmp_path)
    before = backbone.conv_in.weight.detach().clone()
    found = inherit(FAMILY, backbone, source)
    assert found.fresh == ("conv_in",) and torch.equal(backbone.conv_in.weight, before)
    assert "fresh: conv_in (attention_head_dim is 4 there, 2 here)" in found.sentence()


def test_a_pipeline_folder_gives_its_unet(tmp_path: Path) -> None:
    save_unet(tmp_path / "pipeline" / "unet")
    assert inherit(FAMILY, pruned(tmp_path), str(tmp_path / "pipeline")).copied > 0


@pytest.mark.parametrize("what", ["nowhere", "empty", "other", "cut", "narrow"])
def test_what_cannot_be_used_is_one_line(what: str, tmp_path: Path) -> None:
    source = tmp_path / what
    if what == "empty":
        source.mkdir()
    elif what == "other":
        from latent_fixtures import save_image_autoencoder

        save_image_autoencoder(source)
    elif what == "cut":
        save_unet(source)
        weights = source / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    elif what == "narrow":
        save_unet(source, block_out_channels=[4, 4, 4, 4], in_channels=3, out_channels=3)
    with pytest.raises(
        NasError, match="no network could be loaded|not a UNet2D|no block has the backbone's shapes"
    ) as caught:
        inherit(FAMILY, pruned(tmp_path), str(source))
    assert "\n" not in str(caught.value) and str(source) in str(caught.value)


def test_a_model_out_of_reach_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library would retry for a minute, and then speak of a missing file."""
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: (_ for _ in ()).throw(OSError("no network")))
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for source, reason in (
        ("nobody/nothing-at-all", "no such folder, and .* cannot be reached"),
        ("./here/unet", "no such folder"),
        ("a/b/c", "no such folder"),
    ):
        with pytest.raises(NasError, match=reason) as caught:
            inherit(FAMILY, build_backbone(tiny().backbone), source)
        assert "\n" not in str(caught.value)


def test_training_starts_from_it_says_what_came_and_goes_on_without_it(tmp_path: Path) -> None:
    source = tmp_path / "unet"
    torch.manual_seed(3)
    given = build_backbone(tiny().backbone)
    given.save_pretrained(str(source))
    said: list[str] = []
    config = short(init=str(source), steps=2)
    trainer = begin(tiny(), clips(), config, tmp_path / "run", 5, said.append)
    assert torch.equal(trainer.stage.supernet.unet.conv_in.weight, given.conv_in.weight)  # type: ignore[union-attr, arg-type]
    assert torch.equal(trainer.average.values["supernet.unet.conv_in.weight"], given.conv_in.weight)  # type: ignore[arg-type]
    assert len(said) == 1 and "188,467 of 188,467 parameters (100%)" in said[0]
    run(tmp_path / "run", config)
    (source / "config.json").unlink()
    run(tmp_path / "run", config)  # a training that goes on needs the file no more
    assert load_checkpoint(list_checkpoints(tmp_path / "run")[-1]).state["step"] == 2
