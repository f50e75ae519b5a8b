"""Interruptions: time that an execution was ready to run and did not is seen with one thread and with several."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from profiler_fakes import small

from device_profiler import waits
from device_profiler.device import Device
from device_profiler.lowering import lower
from device_profiler.runtimes.contract import Execution
from device_profiler.runtimes.onnxruntime import OnnxRuntime
from device_profiler.waits import SWITCH_MS, Watch

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's queues are read on Linux")
PIECE = bytes(1 << 22)  # hashing it leaves the interpreter to the other thread


def burn(pieces: int = 12) -> None:
    for _ in range(pieces):
        hashlib.sha256(PIECE).digest()


@pytest.fixture()
def one_processor() -> Iterator[None]:
    """A second thread of this process computes; both share one processor while the test runs."""
    before = os.sched_getaffinity(0)
    stop = threading.Event()
    other = threading.Thread(target=lambda: [burn(1) for _ in iter(stop.is_set, True)])
    other.start()
    tasks = [int(task.name) for task in waits.TASKS.iterdir()]
    for task in tasks:
        os.sched_setaffinity(task, {min(before)})
    yield
    stop.set()
    other.join()
    for task in waits.TASKS.iterdir():
        os.sched_setaffinity(int(task.name), before)


@LINUX
def test_a_thread_that_is_put_off_is_seen_where_the_process_time_shows_nothing(
    one_processor: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "processors", lambda: 2)  # as before the other thread was put on the same one
    with Watch(2) as watch:
        watch.start()
        busy = time.process_time()
        burn()
        busy = (time.process_time() - busy) * 1e3
        ms, waited = watch.stop()
    assert waited is not None and 0.2 * ms < waited <= ms
    assert Execution(ms, waited).interrupted
    assert waited > ms - busy, "the process's own time adds both threads up and shows less"


def test_one_threads_wait_is_the_wall_less_its_own_time() -> None:
    with Watch(1) as watch:
        watch.start()
        time.sleep(0.05)
        ms, waited = watch.stop()
    assert ms >= 50 and waited is not None and waited == pytest.approx(ms, rel=0.2)
    assert Execution(ms, waited).interrupted and not Execution(100.0, 1.9).interrupted


def test_of_several_threads_the_longest_wait_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([{"1": 0, "2": 5_000_000}, {"1": 200_000, "2": 8_000_000, "3": 100_000}])
    monkeypatch.setattr(waits, "processors", lambda: 8)
    watch = Watch(3)
    monkeypatch.setattr(watch, "_delays", lambda: next(counts))
    watch.start()
    watch._began -= 0.01  # the execution took 10 ms
    assert watch.stop()[1] == pytest.approx(3.0)


def test_a_kernel_that_only_counts_is_asked_for_involuntary_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([100, 107])
    monkeypatch.setattr(waits, "processors", lambda: 8)
    monkeypatch.setattr(waits, "TASKS", Path("/nowhere"))
    monkeypatch.setattr(waits, "involuntary_switches", lambda: next(counts, 107))
    watch = Watch(2)
    watch._open()
    watch.start()
    watch._began -= 0.01
    assert watch.stop()[1] == pytest.approx(7 * SWITCH_MS)


def test_more_threads_than_processors_wait_for_each_other_and_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "processors", lambda: 2)
    with Watch(4) as watch:
        _, waited = watch.stop()
    assert waited is None and not Execution(10.0, None).interrupted


@pytest.mark.parametrize("threads", [1, 2])
def test_a_timed_child_tells_its_waits(threads: int, tmp_path: Path) -> None:
    runtime = OnnxRuntime(Device(name="here", runtime="onnxruntime", threads=threads))
    session = runtime.load(lower(small(), "onnx", "plain", tmp_path), 600.0)
    times = session.run(3, 600.0)
    runtime.close()
    known = threads <= waits.processors()
    assert all((run.waited_ms is not None) == known and run.ms > 0 for run in times)
    assert all(run.waited_ms is None or run.waited_ms >= 0 for run in times)
