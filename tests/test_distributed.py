"""Several processes train as one, on a CPU through gloo."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_fixtures import DATA, losses, members, run, short, tiny

from nas.config import TrainConfig
from nas.data import Dataset, open_data
from nas.errors import NasError
from nas.training.checkpoint import list_checkpoints, load_checkpoint
from nas.training.distributed import World
from nas.training.launch import launch
from nas.training.log import Step

SETTINGS = [
    "data.source=moving_shapes",
    "train.steps=200",
    "train.warmup_steps=0",
    "train.clips=2",
    "train.images=0",
    "train.workers=0",
    "train.trackers=[]",
    "train.validate_every=0",
]


def words(out: Path, *sets: str) -> list[str]:
    return ["train", "tiny", "--out", str(out), *(word for text in [*SETTINGS, *sets] for word in ("--set", text))]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")


def same_clips() -> Dataset:
    return open_data(DATA, tiny().clip("training"), "train", seed=5)


def member(rank: int, port: int, folder: Path, config: TrainConfig, dies_at: int | None, said: Any) -> None:
    """One of two processes."""
    from accelerate import PartialState

    PartialState._reset_state()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    real = torch.optim.AdamW.step

    def step(self: Any, *arguments: Any, **more: Any) -> Any:
        step.count += 1  # type: ignore[attr-defined]
        if rank == 1 and step.count == dies_at:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *arguments, **more)

    step.count = 0  # type: ignore[attr-defined]
    torch.optim.AdamW.step = step  # type: ignore[method-assign, assignment]
    try:
        run(folder, config, data=same_clips())
    except NasError as error:
        said.put((rank, str(error)))


def together(folder: Path, config: TrainConfig, dies_at: int | None = None) -> dict[int, str]:
    """Train with two processes; what each that ended early said."""
    tiny()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    codes, found = members(member, port, folder, config, dies_at)
    if dies_at is None:
        assert codes == [0, 0], found
    return dict(found)


def close(one: list[tuple[int, float, float]], other: list[tuple[int, float, float]]) -> None:
    assert [row[0] for row in one] == [row[0] for row in other]
    for mine, theirs in zip(one, other, strict=True):
        assert mine[1:] == pytest.approx(theirs[1:], rel=2e-4)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("settings", [{}, {"paths": "sandwich", "accumulate": 2}, {"shard": True, "paths": "sandwich"},
     {"shard": True, "spatial_rate": 0.1}],
)  # fmt: skip
def test_two_processes_make_the_losses_of_one_with_the_same_batch(settings: dict[str, Any], tmp_path: Path) -> None:
    config = short(**settings, steps=4)
    together(tmp_path / "two", config)
    run(tmp_path / "one", config, data=same_clips())
    close(losses(tmp_path / "two"), losses(tmp_path / "one"))
    one, other = (load_checkpoint(list_checkpoints(tmp_path / name)[-1]) for name in ("two", "one"))
    for group, tensors in one.tensors.items():
        assert tensors.keys() == other.tensors[group].keys() and tensors
        assert all(tensor.shape == other.tensors[group][name].shape for name, tensor in tensors.items())
    name = "supernet.unet.conv_in.weight"
    assert torch.allclose(one.tensors["weights"][name], other.tensors["weights"][name], atol=2e-3)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_process_that_dies_ends_the_others_in_one_line_and_the_run_goes_on(tmp_path: Path) -> None:
    config = short()
    said = together(tmp_path / "two", config, dies_at=4)
    assert list(said) == [0] and "\n" not in said[0]
    assert "another of the 2 processes ended" in said[0] and "go on from the last checkpoint" in said[0]
    assert list_checkpoints(tmp_path / "two")[-1].name <= "step-00000004"
    together(tmp_path / "two", config)
    run(tmp_path / "one", config, data=same_clips())
    close(losses(tmp_path / "two"), losses(tmp_path / "one"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_what_two_began_one_goes_on_with(tmp_path: Path) -> None:
    """And the other way round: a checkpoint knows nothing of how many made it."""

    class Stop(Exception):
        pass

    def stop(done: Step) -> None:
        if done.step == 4:
            raise Stop

    config = short(shard=True)
    with pytest.raises(Stop):
        run(tmp_path / "mixed", config, data=same_clips(), progress=stop)
    together(tmp_path / "mixed", config)
    run(tmp_path / "one", config, data=same_clips())
    close(losses(tmp_path / "mixed"), losses(tmp_path / "one"))


def test_a_killed_process_of_the_command_is_named_in_one_line(tmp_path: Path) -> None:
    arguments = [*words(tmp_path / "run"), "--processes", "2"]
    started = subprocess.Popen(
        [sys.executable, "-m", "nas.cli", *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    wait_for(lambda: (tmp_path / "run" / "supernet" / "metrics.jsonl").exists(), started)
    os.kill(child(started.pid, 1), signal.SIGKILL)
    _, said = started.communicate()
    lines = [line for line in said.splitlines() if line.startswith("nas:")]
    assert started.returncode == 2 and len(lines) == 1, said
    assert "process 1 of 2 was killed (SIGKILL); run the same command to go on" in lines[0]
    assert "Traceback" not in said


def wait_for(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not there():
        assert process.poll() is None
        time.sleep(0.05)


def child(parent: int, rank: int) -> int:
    """The process of a rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(fields[1]) == parent:
            found[next((int(e[5:]) for e in environment if e.startswith(b"RANK=")), -1)] = int(entry.name)
    return found[rank]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_batch_that_does_not_divide_is_refused_in_one_line(tmp_path: Path) -> None:
    assert "must divide by the 2 processes" in together(tmp_path, short(clips=3), dies_at=-1)[0]
    with pytest.raises(NasError, match="--processes must be 2 or more"):
        launch(words(tmp_path / "run"), 1)


def test_shares_cover_a_batch_once() -> None:
    shares = [World(rank, 4, torch.device("cpu")).share(8) for rank in range(4)]
    assert [i for share in shares for i in share] == list(range(8))


def test_alone_nothing_is_sent() -> None:
    world = World.open("cpu")
    assert (world.rank, world.size, world.main) == (0, 1, True)
    assert world.mean([0.1, 0.2]) == [0.1, 0.2] and world.say(3) == 3
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    world.average_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 1.0]
