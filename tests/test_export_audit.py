"""The exported network on real clips: what would overflow is named with its place, and holds when it is safe."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLAllegro
from export_fixtures import SMALL
from latent_fixtures import save_allegro, save_text, small_space, video_folder
from torch import Tensor, nn

from nas.cli import main
from nas.config import DataConfig
from nas.data.caching import CacheConfig, build_cache
from nas.errors import NasError
from nas.export.audit import LEVELS, audit_network, real_clips
from nas.export.checks import Function
from nas.export.network import NAMES
from nas.export.packages import How, write_package
from nas.export.telling import audit_sentences
from nas.model.pipeline import load_pipeline


class Large(nn.Module):
    """A network whose normalisation meets values far from their group's mean on any real clip."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.conv.weight.data *= 2000

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + (timestep / 1000).sin() + context.mean()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_folder(tmp_path_factory.mktemp("clips") / "videos", count=2)


def audited(safe: bool, exported_model: Path, clips: Path, folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    inputs = (torch.zeros(4, 3, 16, 16), torch.tensor([500.0]), torch.zeros(1, 16, 32))
    one = [Function("main", Large().eval(), inputs, NAMES)]
    write_package("net", one, How(safe=safe), folder / "unet.mlpackage")
    return audit_network(folder / "unet.mlpackage", one, [SMALL], load_pipeline(exported_model), clips)


def test_what_overflows_on_real_clips_is_named_with_its_place(
    exported_model: Path, clips: Path, tmp_path: Path
) -> None:
    told = audited(False, exported_model, clips, tmp_path)
    assert told["levels"] == list(LEVELS)
    lost = told["overflow"][0]
    assert lost["place"] == "conv" and max(lost["largest"], lost.get("inside") or 0) > 65_504
    assert {one["name"] for one in told["loses_precision"]} >= {"timestep"}
    lines = list(audit_sentences(told))
    assert f"{lost['operation']} {lost['largest']:.3g} at conv" in lines[1] and lines[1].endswith("--safe")
    assert "input timestep at the inputs" in lines[2]


def test_nothing_overflows_where_it_is_written_safely(exported_model: Path, clips: Path, tmp_path: Path) -> None:
    told = audited(True, exported_model, clips, tmp_path)
    assert told["overflow"] == [] and told["loses_precision"] == [] and told["error"] < 5e-3
    assert list(audit_sentences(told))[1:] == ["nothing would overflow", "nothing loses precision"]


def test_a_question_that_has_no_clips_is_one_line(
    exported_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "export",
                str(exported_model),
                "--out",
                str(tmp_path / "c"),
                "--parts",
                "text_encoder",
                "--audit",
                str(tmp_path),
            ]
        )
    assert stopped.value.code == 2 and "--audit is of the network" in capsys.readouterr().err
    with pytest.raises(NasError, match="must be a cache or a folder of captioned clips"):
        next(real_clips(tmp_path / "none", None, SMALL))


def test_latents_come_from_a_cache_or_are_made_of_the_clips(clips: Path, tmp_path: Path) -> None:
    space, saved = small_space(tmp_path), save_allegro(tmp_path / "allegro")
    build_cache(
        DataConfig(source="folder", path=clips), space, CacheConfig(saved, save_text(tmp_path / "clip")), tmp_path / "c"
    )
    pipeline = SimpleNamespace(
        unet=SimpleNamespace(space=space),
        vae=AutoencoderKLAllegro.from_pretrained(saved),
        encode=lambda captions: torch.zeros(len(captions), 8, 16),
    )
    for data in (tmp_path / "c", clips):
        found = list(real_clips(data, pipeline, (8, 32, 32)))
        assert len(found) == 2 and all(latents.shape == (2, 4, 4, 4) for latents, _ in found)
        assert all(float(latents.std()) > 0 for latents, _ in found)
    with pytest.raises(NasError, match="holds latents of 2x4x4x4 and none of 2x4x4x8 .* at 8x32x64 takes"):
        next(real_clips(tmp_path / "c", pipeline, (8, 32, 64)))
