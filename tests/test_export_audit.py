"""The exported network on real clips: what would overflow is named with its place, and holds when it is safe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from latent_fixtures import video_folder
from test_export import SMALL, model
from torch import Tensor, nn

from nas.cli import main
from nas.errors import NasError
from nas.export.audit import LEVELS, audit_network, real_clips
from nas.export.checks import Function
from nas.export.network import NAMES
from nas.export.packages import How, _written
from nas.export.telling import audit_sentences
from nas.model.pipeline import load_pipeline

__all__ = ["model"]  # a fixture


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


def audited(safe: bool, model: Path, clips: Path, folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    inputs = (torch.zeros(4, 3, 16, 16), torch.tensor([500.0]), torch.zeros(1, 16, 32))
    one = [Function("main", Large().eval(), inputs, NAMES)]
    _written("net", one, How(safe=safe), folder / "unet.mlpackage")
    return audit_network(folder / "unet.mlpackage", one, [SMALL], load_pipeline(model), clips)


def test_what_overflows_on_real_clips_is_named_with_its_place(model: Path, clips: Path, tmp_path: Path) -> None:
    told = audited(False, model, clips, tmp_path)
    assert told["levels"] == list(LEVELS)
    lost = told["overflow"][0]
    assert lost["place"] == "conv" and max(lost["largest"], lost.get("inside") or 0) > 65_504
    assert {one["name"] for one in told["loses_precision"]} >= {"timestep"}
    lines = list(audit_sentences(told))
    assert f"{lost['operation']} {lost['largest']:.3g} at conv" in lines[1] and lines[1].endswith("--safe")
    assert "input timestep at the inputs" in lines[2]


def test_nothing_overflows_where_it_is_written_safely(model: Path, clips: Path, tmp_path: Path) -> None:
    told = audited(True, model, clips, tmp_path)
    assert told["overflow"] == [] and told["loses_precision"] == [] and told["error"] < 5e-3
    assert list(audit_sentences(told))[1:] == ["nothing would overflow", "nothing loses precision"]


def test_a_question_that_has_no_clips_is_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(model), "--out", str(tmp_path / "c"), "--parts", "text_encoder", "--audit", str(tmp_path)])
    assert stopped.value.code == 2 and "--audit is of the network" in capsys.readouterr().err
    with pytest.raises(NasError, match="must be a cache or a folder of captioned clips"):
        next(real_clips(tmp_path / "none", None, SMALL))
