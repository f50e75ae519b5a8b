"""A fleet: two workers give one table, one killed in the middle loses no row, and what is missing is said in a line."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import fleet_worker
import pandas as pd
import pytest

from device_profiler import ProfileError, fleet, fleet_network
from device_profiler import profile as profiling
from device_profiler.device import Device
from device_profiler.fleet import profile_fleet, serve
from device_profiler.lowering import default_lowerings, lower
from device_profiler.measure import Progress
from device_profiler.profile import profile
from device_profiler.runtimes import RUNTIMES
from device_profiler.samples import Limits
from device_profiler.subject import Subject, reference_subject
from latency_tables.table import Table, table_path
from nas.cli import main
from search_spaces.space import Space

LIMITS = Limits(warmup=1, min_rounds=3, max_rounds=3, visit_ms=1.0, max_repeats=1)
TIMED = (
    "latency_ms_median",
    "latency_ms_p90",
    "latency_iqr_ratio",
    "latency_low_ms",
    "latency_high_ms",
    "runs",
    "reason",
)
PATIENT = 600.0  # seconds: stops a hang, and is no limit for a busy machine
Start = Callable[..., subprocess.Popen[bytes]]
Enter = Callable[..., "Worker"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is measured here, lowered in this process: a child that imports torch first takes seconds."""
    folder, space = tmp_path_factory.mktemp("cache"), Space.load("tiny")
    for workload in (*space.workloads("fp32"), *space.ends("fp32")):
        origin = "tiny" if workload.block == "backbone" else ""
        lower(Subject(workload, origin), "counts", default_lowerings("counts", workload)[0], folder)
    lower(reference_subject("fp32"), "counts", "plain", folder)
    return folder


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNTIMES, "scripted", fleet_worker.RUNTIME)
    monkeypatch.setattr(fleet_network, "CONNECT_S", PATIENT)


@pytest.fixture()
def scheduler() -> Iterator[str]:
    """A scheduler in a thread of this process: what it says and does is that of ``dask scheduler``."""
    import dask
    from distributed import LocalCluster

    how = {"n_workers": 0, "processes": False, "protocol": "tcp", "host": "127.0.0.1", "dashboard_address": None}
    patient = {"distributed.scheduler.allowed-failures": 1, "distributed.comm.timeouts.connect": f"{PATIENT:g}s"}
    with dask.config.set(patient), LocalCluster(**how) as cluster:
        yield cluster.scheduler_address


@pytest.fixture()
def start(scheduler: str, tmp_path: Path, cache: Path) -> Iterator[Start]:
    """Starts workers, and ends those that still run."""
    running = []

    def one(device: Device | None = None) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        yaml = tmp_path / f"worker{len(running)}.yaml"
        yaml.write_text((device or board()).model_dump_json(exclude_none=True))
        command = [sys.executable, str(Path(fleet_worker.__file__)), scheduler, str(yaml), str(cache)]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
        return running[-1]

    yield one
    for process in running:
        process.kill()
        process.wait()


class Worker(threading.Thread):
    """``serve`` in a thread, for a worker that nobody kills: a process would import for seconds. Ends with an error."""

    def __init__(self, scheduler: str, device: Device, cache: Path) -> None:
        super().__init__(daemon=True)
        self.where = (scheduler, device, cache)
        self.ready = threading.Event()
        self.ended = ""
        self.start()

    def run(self) -> None:
        try:
            serve(*self.where, lambda name: self.ready.set())
        except ProfileError as error:
            self.ended = str(error)


@pytest.fixture()
def enter(scheduler: str, cache: Path) -> Iterator[Enter]:
    """Starts workers in threads, and lets them go at the end."""
    workers: list[Worker] = []

    def one(device: Device | None = None) -> Worker:
        workers.append(Worker(scheduler, device or board(), cache))
        workers[-1].ready.wait()
        return workers[-1]

    yield one
    from distributed import Client

    with Client(scheduler, set_as_default=False) as client:
        client.retire_workers(list(client.scheduler_info(n_workers=-1)["workers"]))
    for worker in workers:
        worker.join()


def board(**changes: object) -> Device:
    return Device.model_validate(
        {"name": "board", "runtime": "scripted", "chip": "One", "compute_unit": "CPU", **changes}
    )


def wait_for(count: int, scheduler: str) -> None:
    from distributed import Client

    with Client(scheduler, set_as_default=False) as client:
        client.wait_for_workers(count)


@contextmanager
def kept_alive(start: Start, device: Device, count: int) -> Iterator[None]:
    """As many workers of the device, each started anew when it dies."""
    running = [start(device) for _ in range(count)]
    stop = threading.Event()

    def relight() -> None:
        while not stop.is_set():
            for at, process in enumerate(running):
                if process.poll() is not None:
                    running[at] = start(device)
            time.sleep(0.1)

    thread = threading.Thread(target=relight)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def untimed(table: Table) -> list[dict[str, object]]:
    return [{name: value for name, value in asdict(row).items() if name not in TIMED} for row in table]


def test_a_killed_worker_loses_no_row_and_the_table_is_that_of_one_worker(
    scheduler: str, start: Start, tmp_path: Path, cache: Path
) -> None:
    alone = profile("tiny", board(), tmp_path / "alone", limits=LIMITS, cache_dir=cache)
    victim, _ = start(), start()
    wait_for(2, scheduler)
    path = table_path(tmp_path / "fleet", "board", "scripted")
    workers: list[str] = []
    on_disk: list[int] = []

    def watch(event: Progress) -> None:
        workers.append(event.detail)
        on_disk.append(len(Table.load(path)))
        if len(workers) == 3:
            victim.kill()

    table = profile_fleet("tiny", board(), tmp_path / "fleet", scheduler, limits=LIMITS, group=4, progress=watch)
    assert victim.wait() == -9
    assert on_disk == list(range(1, 13)), "a row is on disk when it is told of"
    assert len(set(workers)) == 2, "both workers took part"
    assert untimed(table) == untimed(alone) and len(table) == 12
    assert {row.status for row in table} == {"ok", "oom"}
    for row in table:
        if row.latency_ms_median is not None:
            assert row.latency_ms_median == pytest.approx(fleet_worker.truth_ms(row.key), rel=0.01)
    samples = pd.read_csv(path.with_name("scripted.samples.csv.gz"))
    assert {row.key for row in table if row.ok} <= set(samples["key"]), "every timed workload left its raw samples"
    assert samples["run"].nunique() >= 2
    again = profile_fleet("tiny", board(), tmp_path / "fleet", "tcp://127.0.0.1:1", limits=LIMITS)
    assert again.to_csv() == table.to_csv(), "with nothing to do no scheduler is asked"


def test_a_workload_that_takes_every_worker_is_a_row_and_the_run_goes_on(
    scheduler: str, start: Start, tmp_path: Path
) -> None:
    deadly = board(notes="Conv3D(kernel_size=3)/c32")
    with kept_alive(start, deadly, 2):
        wait_for(2, scheduler)
        table = profile_fleet("tiny", board(), tmp_path, scheduler, limits=LIMITS, group=3, patience_s=PATIENT)
    failed = [row for row in table if row.status == "failed"]
    assert [row.key for row in failed] == ["Conv3D(kernel_size=3)/c32/t8/24x24/b1@fp32"]
    assert "every worker that took it died" in failed[0].reason and len(table) == 12


def test_a_workload_queued_behind_a_deadly_one_is_not_blamed(scheduler: str, start: Start, tmp_path: Path) -> None:
    """With one workload a task all of them queue on the one worker, and dask holds each death against all."""
    deadly = board(notes="Conv3D(kernel_size=3)/c32")
    with kept_alive(start, deadly, 1):
        wait_for(1, scheduler)
        table = profile_fleet("tiny", board(), tmp_path, scheduler, limits=LIMITS, group=1, patience_s=PATIENT)
    assert [row.key for row in table if row.status == "failed"] == ["Conv3D(kernel_size=3)/c32/t8/24x24/b1@fp32"]
    assert len(table) == 12


def test_a_worker_whose_device_is_gone_is_let_go_and_the_others_take_its_rows(
    scheduler: str, start: Start, tmp_path: Path
) -> None:
    gone, _ = start(board(notes="unplugged")), start()
    wait_for(2, scheduler)
    told: list[Progress] = []
    table = profile_fleet("tiny", board(), tmp_path, scheduler, limits=LIMITS, group=2, progress=told.append)
    assert len(table) == 12 and {row.status for row in table} == {"ok", "oom"}
    (said,) = (event.detail for event in told if event.stage == "gone")
    assert said.endswith("is let go, the others take its rows: phone: no iPhone is attached; plug one in.")
    assert gone.wait() == 1


def test_a_device_that_is_gone_ends_the_run_where_there_is_no_other(
    scheduler: str, enter: Enter, tmp_path: Path
) -> None:
    enter(board(notes="unplugged"))
    with pytest.raises(ProfileError, match=r"no iPhone is attached; plug one in. \(0 of 12 rows are written") as caught:
        profile_fleet("tiny", board(), tmp_path, scheduler, limits=LIMITS)
    assert "\n" not in str(caught.value)


def test_without_a_worker_or_with_a_wrong_one_the_remedy_is_named(scheduler: str, enter: Enter, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no worker at .* owns board; start one for each device: nas worker tcp://"):
        profile_fleet("tiny", board(), tmp_path, scheduler)
    enter(), enter(board(chip="Two"))
    with pytest.raises(ProfileError, match="differ: chip (One and Two|Two and One); one table is of one kind"):
        profile_fleet("tiny", board(), tmp_path, scheduler)
    assert not table_path(tmp_path, "board", "scripted").exists()


def test_workers_that_run_it_otherwise_are_refused() -> None:
    """A client that answers for its workers stands in for the scheduler."""

    class Client:
        def __init__(self, *devices: Device) -> None:
            self.devices = {f"tcp://{n}": device for n, device in enumerate(devices)}

        def scheduler_info(self, n_workers: int) -> dict[str, object]:
            return {"workers": {at: {"name": at, "resources": {"board": 1}} for at in self.devices}}

        def run(self, function: object, seed: int, workers: list[str]) -> dict[str, object]:
            runtime = fleet_worker.Scripted(board())
            return {at: profiling._header(self.devices[at], runtime, seed).to_mapping() for at in workers}

    one, four = board(threads=1), board(threads=4)
    assert fleet._agreed_header(Client(one, one), one, "tcp://a:1", 0).device == "board"
    with pytest.raises(ProfileError, match=r"worker tcp://0 has another threads 1 and 4 .*; give both one YAML"):
        fleet._agreed_header(Client(four, four), one, "tcp://a:1", 0)
    with pytest.raises(ProfileError, match=r"workers tcp://0 and tcp://1 differ: threads 1 and 4; one table is of one"):
        fleet._agreed_header(Client(one, four), one, "tcp://a:1", 0)


def test_when_the_last_worker_goes_the_rows_stay_and_the_command_to_go_on_is_named(
    scheduler: str, start: Start, tmp_path: Path
) -> None:
    only = start()
    wait_for(1, scheduler)
    rows: list[str] = []

    def watch(event: Progress) -> None:
        rows.append(event.key)
        if len(rows) == 2:
            only.kill()

    with pytest.raises(ProfileError, match=r"no worker that owns board is left; \d+ of 12 rows are written"):
        profile_fleet("tiny", board(), tmp_path, scheduler, limits=LIMITS, group=2, patience_s=1.0, progress=watch)
    assert len(Table.load(table_path(tmp_path, "board", "scripted"))) >= 2


def test_a_worker_ends_with_its_scheduler(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler is a process here, as ``dask scheduler`` starts it, and is killed."""
    file = tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--no-dashboard", "--no-show", "--scheduler-file", str(file)], stderr=subprocess.DEVNULL
    )
    while not file.exists() and process.poll() is None:
        time.sleep(0.05)
    worker = Worker(json.loads(file.read_text())["address"], board(), cache)
    worker.ready.wait()
    monkeypatch.setattr(fleet_network, "CONNECT_S", 0.5)  # nobody will answer
    process.kill()
    process.wait()
    worker.join()
    assert worker.ended.startswith("the scheduler at tcp://127.0.0.1:") and "has gone" in worker.ended


def test_tasks_shrink_so_that_every_worker_has_some(scheduler: str, enter: Enter, tmp_path: Path) -> None:
    sizes = {(12, 1): 6, (12, 4): 2, (3, 4): 1, (1, 1): 1, (100, 2): 8, (100, 10): 5, (0, 0): 1}
    assert {case: fleet.group_size(*case) for case in sizes} == sizes
    enter(), enter()
    workers: list[str] = []
    told = lambda event: workers.append(event.detail)  # noqa: E731
    assert len(profile_fleet("tiny", board(), tmp_path, scheduler, limits=LIMITS, progress=told)) == 12
    assert len(set(workers)) == 2, "with one task of eight the second worker would have the last four, or none"


def test_a_space_of_ones_own_reaches_the_workers(scheduler: str, enter: Enter, tmp_path: Path, cache: Path) -> None:
    """Workers may be on other hosts, where the YAML is not."""
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "name: mine\nbackbone: tiny\ntext: {tokens: 16}\n"
        "clips: {deployment: {frames: 8, height: 16, width: 16, fps: 8}}\n"
        "positions: {down.0.0: {max_layers: 1, variants: [Conv1D(kernel_size=3)]}}\n"
    )
    (block,) = (workload for workload in Space.load(mine).workloads("fp32") if workload.is_block)
    lower(Subject(block), "counts", "plain", cache)  # so that one child lowers: that of the backbone, from the YAML
    enter()
    table = profile_fleet(mine, board(), tmp_path / "tables", scheduler, limits=LIMITS)
    assert [row.status for row in table] == ["ok"] * 3
    assert {row.block for row in table} == {"Conv1D", "backbone", "text_encoder"}


@pytest.mark.parametrize("address", ["localhost", "http://localhost:8786", "tcp://", ""])
def test_an_address_that_is_none_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="is no scheduler address; it looks like tcp://host:8786"):
        profile_fleet("tiny", board(), tmp_path, address)
    with pytest.raises(ProfileError, match="is no scheduler address"):
        serve(address, board())


def test_a_scheduler_that_does_not_answer_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fleet_network, "CONNECT_S", 0.5)
    for call in (lambda at: profile_fleet("tiny", board(), tmp_path, at), lambda at: serve(at, board())):
        with pytest.raises(ProfileError, match="no scheduler answers at tcp://127.0.0.1:1; start one with: dask"):
            call("tcp://127.0.0.1:1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["worker", "localhost", "--device", "host_cpu"], "is no scheduler address"),
        (["worker", "tcp://127.0.0.1:1", "--device", "hots_cpu"], "Did you mean 'host_cpu'?"),
        (["profile", "--block", "Conv1D", "--shape", "8x4x8x8", "--scheduler", "tcp://a:1"], "measures a whole SPACE"),
        (["profile", "tiny", "--scheduler", "8786", "--table", "absent"], "is no scheduler address"),
        (["profile", "tiny", "--networks", "20", "--scheduler", "tcp://a:1"], "anew; leave --scheduler out"),
        (["profile", "tiny", "--networks", "20", "--retry"], "anew; leave --retry out"),
        (["profile", "tiny", "--networks", "20", "--spatial"], "anew; leave --spatial out"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and words in said and said.count("\n") == 1
