"""What happens to a phone in the middle of a run: the finished rows stay, the others are measured or say why not."""

import dataclasses
import json
import time
from types import SimpleNamespace

import pytest
from phone_standin import QUICK, Behaviour, StandIn, artifacts, model_name, phones, run, runtime_of, truth

from device_profiler.errors import WorkloadError
from device_profiler.lowering import Lowered
from device_profiler.samples import RunLog

__all__ = ["artifacts", "phones"]


def test_an_app_killed_for_memory_is_oom_and_the_others_are_measured(phones: StandIn, artifacts: list[Lowered]) -> None:
    phones.behave(Behaviour(die_on=model_name(artifacts[1].file), die_after=2))
    first, killed = run(phones, artifacts)
    assert killed.status == "oom" and "signal 9" in killed.reason
    assert first.status == "ok"
    assert first.latency_ms_median == pytest.approx(truth(artifacts[0]), rel=0.02)


def test_an_app_that_crashes_is_failed_with_its_last_words(phones: StandIn, artifacts: list[Lowered]) -> None:
    phones.behave(Behaviour(die_on=model_name(artifacts[0].file), die_words="App terminated due to signal 11."))
    rows = run(phones, artifacts[:2])
    assert rows[0].status == "failed" and "crashed" in rows[0].reason and "signal 11" in rows[0].reason
    assert rows[1].status == "ok"


def test_a_model_whose_first_prediction_fails_does_not_stay_on_the_phone(
    phones: StandIn, artifacts: list[Lowered]
) -> None:
    phones.behave(Behaviour(refuse_on=model_name(artifacts[0].file)))
    runtime = runtime_of(phones, artifacts[:1])
    with pytest.raises(WorkloadError, match="prediction failed"):
        runtime.load(artifacts[0], 8.0)
    loaded = json.loads((phones.phone() / "loaded.json").read_text())
    runtime.close()
    assert loaded == []


def test_a_load_longer_than_twenty_polls_is_waited_for(phones: StandIn, artifacts: list[Lowered]) -> None:
    phones.behave(Behaviour(load_s=1.5))  # 30 polls of 0.05 s, before each of two answers
    (row,) = run(phones, artifacts[:1], limits=dataclasses.replace(QUICK, min_rounds=1, max_rounds=1))
    assert row.status == "ok"


def test_a_prediction_that_never_answers_times_out_and_the_rest_goes_on(
    phones: StandIn, artifacts: list[Lowered], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that jumps by hours when the app hangs, and by nothing else."""
    hangs = phones.phone() / "hangs"
    clock = SimpleNamespace(
        monotonic=lambda: time.monotonic() + (1e4 * len(hangs.read_text()) if hangs.exists() else 0), sleep=time.sleep
    )
    monkeypatch.setattr("device_profiler.runtimes.phone.time", clock)
    phones.behave(Behaviour(hang_on=model_name(artifacts[0].file)))
    rows = run(phones, artifacts[:2])
    assert rows[0].status == "timeout" and "no answer" in rows[0].reason
    assert rows[1].status == "ok"


def test_a_cable_pulled_for_a_while_costs_time_and_no_row(phones: StandIn, artifacts: list[Lowered]) -> None:
    phones.behave(Behaviour(unplug_after=5, unplugged_s=0.8))
    rows = run(phones, artifacts[:2])
    assert [row.status for row in rows] == ["ok", "ok"]
    calls = (phones.phone() / "calls.log").read_text()
    assert calls.count("device process launch") == 2


def test_a_full_phone_disk_is_said_to_be_full(phones: StandIn, artifacts: list[Lowered]) -> None:
    phones.behave(Behaviour(full=True))
    (row,) = run(phones, artifacts[:1])
    assert row.status == "failed" and "disk is full" in row.reason


def test_a_phone_that_gets_hot_is_seen_by_the_reference(phones: StandIn, artifacts: list[Lowered]) -> None:
    phones.behave(Behaviour(heat=2.0, noise=0.001))
    log = RunLog()
    limits = dataclasses.replace(QUICK, min_rounds=2, max_rounds=2)
    (row,) = run(phones, artifacts[:2], limits=limits, log=log, reference=True)
    assert log.summary(limits.drift)["drift"] > limits.drift  # type: ignore[operator]
    assert "unstable" in row.reason
