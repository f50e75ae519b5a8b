"""In what numbers a training computes: by the device, as it was begun, and said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from training_fixtures import losses, run, short

from nas.config import RunConfig, TrainConfig, load, store
from nas.errors import NasError
from nas.training.config import LoopConfig
from nas.training.distributed import World
from nas.training.engine import Engine
from nas.training.log import Step, begun_settings
from nas.training.precision import resolve_precision, sentence, set_tf32

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def flags() -> Iterator[None]:
    """torch's own settings of TF32, put back."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize("config", [TrainConfig(), LoopConfig()])
def test_auto_is_full_precision_on_a_cpu(config: TrainConfig | LoopConfig) -> None:
    engine = Engine(config, World(0, 1, CPU))
    assert config.precision == "auto" and engine.precision == "fp32" and not engine.scaler.is_enabled()


@pytest.mark.parametrize(("able", "found"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_where_the_cuda_device_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, able: bool, found: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: able or including_emulation)
    assert resolve_precision("auto", CUDA) == found
    assert resolve_precision("fp16", CUDA) == "fp16" and resolve_precision("auto", CUDA, "fp16") == "fp16"


@pytest.mark.usefixtures("flags")
def test_tf32_is_as_stated_on_cuda_and_untouched_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    set_tf32(CUDA, True)
    assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    set_tf32(CPU, False)
    assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    set_tf32(CUDA, False)
    assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "A card")
    assert sentence(CUDA, "bf16", False) == "bf16 on cuda (A card), TF32 off"


def test_the_start_says_in_what_a_training_computes_and_auto_goes_on_in_it(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: Step) -> None:
        if done.step == 3:
            raise Stop

    small = {"steps": 4, "clips": 1, "images": 0}
    run(tmp_path / "whole", short(precision="bf16", **small))
    with pytest.raises(Stop):
        run(tmp_path / "cut", short(precision="bf16", **small), progress=stop)
    said: list[str] = []
    run(tmp_path / "cut", short(**small), tell=said.append)
    assert said[0].startswith("train      bf16 on cpu;")
    assert begun_settings(tmp_path / "cut")["precision"] == "bf16"
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    with pytest.raises(NasError, match="precision is 'bf16', the run's 'fp32'"):
        run(tmp_path / "cut", short(precision="fp32", **small))


def test_a_run_that_states_a_precision_keeps_it_where_none_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def config(precision: str) -> RunConfig:
        return RunConfig.model_validate({"space": "tiny", "train": {"precision": precision}})

    store(config("fp32"), tmp_path)
    assert store(config("auto"), tmp_path).train.precision == "fp32" == load(tmp_path).train.precision
    assert not capsys.readouterr().err
    with pytest.raises(NasError, match="train.precision"):
        store(config("bf16"), tmp_path)
