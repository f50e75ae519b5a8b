"""Other people's model folders: weights by rank, whole, filled and finite; a stranger's code stays unrun."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from latent_fixtures import save_allegro, save_text
from safetensors.torch import load_file, save_file
from test_init import save_unet
from tuning_fixtures import make_model

from nas.cli import main
from nas.errors import NasError
from nas.model.pipeline import load_pipeline
from nas.pretrained.autoencoder import VideoAutoencoder
from nas.pretrained.files import rank_weights
from nas.pretrained.given import load_given
from nas.pretrained.text import TextEncoder
from search_spaces.families.unet import FAMILY

NAME = "diffusion_pytorch_model"
SHARDED = 20_000  # bytes


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_unet(tmp_path_factory.mktemp("unet") / "plain"))


def weights_of(file: Path) -> dict[str, torch.Tensor]:
    """Copies: tensors that safetensors maps from a file die when that file is written anew."""
    return {key: value.clone() for key, value in load_file(file).items()}


def saved(unet: Path, folder: Path, **how: Any) -> str:
    UNet2DConditionModel.from_pretrained(unet).save_pretrained(folder, **how)
    return str(folder)


@pytest.mark.parametrize(
    "how",
    [
        {"variant": "fp16"},
        {"max_shard_size": SHARDED},
        {"max_shard_size": SHARDED, "variant": "fp16"},
        {"variant": "non_ema"},
    ],
)
@pytest.mark.parametrize("part", ["", "unet"])
def test_weights_load_whatever_their_files_are_called(
    how: dict[str, Any], part: str, unet: Path, tmp_path: Path
) -> None:
    saved(unet, tmp_path / "given" / part, **how)
    expected = weights_of(unet / f"{NAME}.safetensors")
    found = load_given(FAMILY, str(tmp_path / "given")).state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_rank_is_full_precision_first_and_one_file_before_shards() -> None:
    names = [f"{NAME}.{one}safetensors" for one in ("bf16.", "ema.", "fp16.", "")]
    names += [f"{NAME}-00001-of-00001.safetensors", f"{NAME}.safetensors.index.json", "model.json", f"{NAME}.bin"]
    ranked = [(weights.variant, bool(weights.index)) for weights in rank_weights(names)]
    assert ranked == [("", False), ("", True), ("fp16", False), ("bf16", False), ("ema", False)]


def test_a_mixed_folder_gives_its_full_precision_and_what_was_not_downloaded_gives_way(
    unet: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    saved(unet, folder)
    whole = weights_of(folder / f"{NAME}.safetensors")
    save_file({key: 2 * value for key, value in whole.items()}, folder / f"{NAME}.fp16.safetensors", {"format": "pt"})
    assert torch.equal(load_given(FAMILY, str(folder)).conv_in.weight, whole["conv_in.weight"])
    (folder / f"{NAME}.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")
    assert torch.equal(load_given(FAMILY, str(folder)).conv_in.weight, 2 * whole["conv_in.weight"])


def broken(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(file: Path) -> None:
        weights = weights_of(file)
        change(weights)
        save_file(weights, file, {"format": "pt"})

    return apply


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pointer": (
        lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "git-lfs pointer, not weights; run git lfs pull",
    ),
    "cut": (lambda file: file.write_bytes(file.read_bytes()[:-100]), "cut short or damaged"),
    "empty": (lambda file: file.write_bytes(b""), "cut short, or no safetensors"),
    "gone": (lambda file: file.unlink(), "holds no weights in safetensors"),
    "pickled": (lambda file: file.rename(file.with_suffix(".bin")), "only pickled weights.*save the model with"),
    "missing": (broken(lambda w: w.pop("conv_out.weight")), "do not fill the UNet2DConditionModel: conv_out.weight"),
    "nan": (
        broken(lambda w: w["conv_out.weight"].view(-1)[:2].fill_(float("nan"))),
        "its weight conv_out.weight: 2 of .* values are not finite",
    ),
    "shape": (
        broken(lambda w: w.update({"conv_out.bias": torch.zeros(3)})),
        "conv_out.bias",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_cannot_be_trusted_are_one_line(fault: str, unet: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unet"
    shutil.copytree(unet, folder)
    break_, said = FAULTS[fault]
    break_(folder / f"{NAME}.safetensors")
    with pytest.raises(NasError, match=said) as caught:
        load_given(FAMILY, str(folder))
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_named(unet: Path, tmp_path: Path) -> None:
    saved(unet, tmp_path / "unet", max_shard_size=SHARDED)
    shard = sorted((tmp_path / "unet").glob("*-00002-of-*"))[0]
    shard.unlink()
    with pytest.raises(NasError, match=f"lacks {shard.name} of"):
        load_given(FAMILY, str(tmp_path / "unet"))


def test_an_index_leads_to_no_other_folder(unet: Path, tmp_path: Path) -> None:
    saved(unet, tmp_path / "unet", max_shard_size=SHARDED)
    index = tmp_path / "unet" / f"{NAME}.safetensors.index.json"
    told = json.loads(index.read_text())
    told["weight_map"]["conv_in.weight"] = "../../elsewhere.safetensors"
    index.write_text(json.dumps(told))
    with pytest.raises(NasError, match="which is no shard beside it"):
        load_given(FAMILY, str(tmp_path / "unet"))


def test_tensors_without_a_place_are_told_and_left_out(
    unet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(unet, tmp_path / "unet")
    broken(lambda w: w.update(strange=torch.zeros(3)))(tmp_path / "unet" / f"{NAME}.safetensors")
    load_given(FAMILY, str(tmp_path / "unet"))
    assert "has no place for it: strange" in capsys.readouterr().err


# Text encoders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_of_a_text_encoder_s_own_is_refused_and_nobody_is_asked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(save_text(tmp_path / "text"))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: ...\n")
    told = json.loads((folder / name).read_text())
    told |= {"auto_map": {"AutoTokenizer": ["own.Own", None], "AutoModel": "own.Own"}, "tokenizer_class": "Own"}
    (folder / name).write_text(json.dumps(told))

    def asked(*words: str) -> str:
        raise AssertionError(f"asked {words}")

    monkeypatch.setattr("builtins.input", asked)
    with pytest.raises(
        NasError, match="names code of its own .auto_map., and a model's own code is never run"
    ) as caught:
        TextEncoder.pretrained(str(folder))
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


WRONG: list[Any] = [None, -1, 10**12, "x", [], {}, True, 1.5]
FIELDS = ["hidden_size", "num_hidden_layers", "max_position_embeddings", "vocab_size", "hidden_act", "eos_token_id"]


@pytest.mark.parametrize("field", FIELDS)
def test_a_text_encoder_with_a_wrong_field_is_one_line_or_works(field: str, tmp_path: Path) -> None:
    """Libraries raise classes of their own, or go on: whatever comes back must read a caption."""
    folder = Path(save_text(tmp_path / "text"))
    whole = json.loads((folder / "config.json").read_text())
    refused = 0
    for value in WRONG:
        (folder / "config.json").write_text(json.dumps({**whole, field: value}))
        try:
            states = TextEncoder.pretrained(str(folder))(["a ball"])
            assert states.shape == (1, 8, 16) and bool(torch.isfinite(states).all())
        except NasError as error:
            refused += 1
            assert "\n" not in str(error) and str(folder) in str(error)
    assert refused >= 3


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '"x"', "[" * 100_000, '{"model": 1}', "\xff"])
def test_a_text_encoder_with_a_wrong_file_is_one_line_or_works(name: str, text: str, tmp_path: Path) -> None:
    folder = Path(save_text(tmp_path / "text"))
    (folder / name).write_bytes(text.encode("latin-1"))
    try:
        assert TextEncoder.pretrained(str(folder))(["a ball"]).shape[0] == 1
    except NasError as error:
        assert "\n" not in str(error) and str(folder) in str(error)


# Model folders ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "model")


@pytest.mark.parametrize(
    "change",
    [
        {"text_encoder": ["nas.cli", "main"]},
        {"scheduler": ["antigravity", "FlowMatchEulerDiscreteScheduler"]},
        {"unet": ["own", "VideoUNet"]},
        {"vae": ["subprocess", "Popen"]},
        {"tokenizer": ["own", "CLIPTokenizer"]},
        {"unet": 3},
        {"scheduler": None},
        {"sampling": [1]},
        {"sampling": {"sigmas": "x"}},
        {"sampling": {"guidance": float("nan")}},
        {"sampling": {"clips": [[0, 1, 2]]}},
    ],
)
def test_an_index_with_foreign_modules_or_wrong_types_is_one_line(
    change: dict[str, Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    index = tmp_path / "model" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **change}))
    with pytest.raises(NasError, match=f"model_index.json: {next(iter(change))}") as caught:
        load_pipeline(tmp_path / "model")
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_flipped_bytes_of_our_own_weights_are_noticed_and_rewritten_files_are_taken(
    model: Path, tmp_path: Path
) -> None:
    shutil.copytree(model, tmp_path / "model")
    file = tmp_path / "model" / "unet" / f"{NAME}.safetensors"
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    with pytest.raises(NasError, match="its tensors are not those that were written"):
        load_pipeline(tmp_path / "model")
    save_file({key: value.half() for key, value in weights_of(file).items()}, file, {"format": "pt"})
    assert load_pipeline(tmp_path / "model").unet.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("network.unet.conv_out.bias"), "do not fill the VideoUNet: network.unet.conv_out.bias"),
        (lambda w: w.update({"network.strange": torch.zeros(2)}), "no place for network.strange"),
        (lambda w: w["network.unet.conv_out.bias"].fill_(float("inf")), "conv_out.bias: 3 of 3 values are not finite"),
    ],
)
def test_a_model_whose_weights_are_not_its_own_is_refused(
    change: Any, said: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(model, tmp_path / "model")
    broken(change)(tmp_path / "model" / "unet" / f"{NAME}.safetensors")
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(tmp_path / "model"), "--prompt", "a", "--steps", "1", "--out", str(tmp_path / "x.mp4")])
    said_lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(said_lines) == 1 and said in said_lines[0]
    assert not (tmp_path / "x.mp4").exists()


def test_an_autoencoder_without_known_statistics_is_one_line(tmp_path: Path) -> None:
    folder = Path(save_allegro(tmp_path / "vae"))
    config = json.loads((folder / "config.json").read_text())
    for change, said in (
        ({"scaling_factor": None}, "states neither scaling_factor nor latents_std"),
        ({"scaling_factor": 0.0}, "zero or not finite"),
        (
            {"_class_name": "AutoencoderOobleck"},
            "not an autoencoder known here: .*; give one of AutoencoderKL",
        ),
        ({"_class_name": None}, "model of no stated kind"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(NasError, match=said) as caught:
            VideoAutoencoder.load(str(folder))
        assert "\n" not in str(caught.value)
