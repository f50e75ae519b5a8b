"""The timing loop, on a runtime whose latencies are known."""

import csv
import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from profiler_fakes import ERRORS, LOST, Script, ScriptedRuntime, artifact, job

from device_profiler.measure import measure
from device_profiler.rows import latency_of
from device_profiler.samples import Job, Limits, RunLog
from latency_tables.record import Record

QUICK = Limits(warmup=1, min_rounds=6, max_rounds=12, visit_ms=1.0, max_repeats=4, iqr_ratio=0.05)


def run(runtime: ScriptedRuntime, *names: str, limits: Limits = QUICK, log: RunLog | None = None) -> dict[str, Record]:
    jobs = [job(name) for name in names]
    rng = np.random.default_rng(0)
    return {r.block: r for r in measure(jobs, runtime, limits, rng, reference=artifact("Reference"), log=log)}


def test_the_rows_recover_the_true_latencies() -> None:
    truth = {"A": 0.3, "B": 2.0, "C": 40.0}
    runtime = ScriptedRuntime({name: Script(ms=ms) for name, ms in truth.items()})
    rows = run(runtime, *truth)
    for name, ms in truth.items():
        assert rows[name].status == "ok" and rows[name].reason == ""
        assert rows[name].latency_ms_median == pytest.approx(ms, rel=0.01)
        assert rows[name].latency_low_ms <= rows[name].latency_ms_median <= rows[name].latency_high_ms  # type: ignore[operator]
    assert runtime.open_sessions == 0


def test_rounds_are_interleaved_and_shuffled_with_the_reference_between() -> None:
    runtime = ScriptedRuntime({})
    run(runtime, "A", "B", "C", "D", "E", "F")
    visits = [name for name in runtime.visits if name != "Reference"]
    rounds = [visits[i : i + 6] for i in range(12, 42, 6)]  # the first round also warms up
    assert all(sorted(names) == ["A", "B", "C", "D", "E", "F"] for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1
    assert runtime.visits.count("Reference") >= 6


def test_the_same_seed_visits_in_the_same_order() -> None:
    first, second = ScriptedRuntime({}), ScriptedRuntime({})
    run(first, "A", "B", "C")
    run(second, "A", "B", "C")
    assert first.visits == second.visits


def test_a_noisy_row_says_that_it_never_became_stable() -> None:
    rows = run(ScriptedRuntime({"A": Script(noise=0.15)}), "A", "B")
    assert rows["A"].status == "ok" and "unstable: IQR ratio" in rows["A"].reason
    assert rows["A"].latency_ms_median == pytest.approx(1.0, rel=0.15)
    assert rows["B"].reason == ""


def test_a_grossly_noisy_row_is_no_number_to_build_on() -> None:
    rows = run(ScriptedRuntime({"A": Script(noise=0.9)}), "A")
    assert rows["A"].status == "unstable"


@pytest.mark.parametrize("status", ["oom", "unsupported", "failed", "timeout"])
@pytest.mark.parametrize("when", ["load", "run"])
def test_what_goes_wrong_is_a_row_and_the_others_go_on(status: str, when: str) -> None:
    error = ERRORS[status]
    bad = Script(load_error=error) if when == "load" else Script(run_error=error, fail_after=3)
    rows = run(ScriptedRuntime({"A": bad}), "A", "B")
    assert (rows["A"].status, rows["A"].reason) == (status, str(error))
    assert rows["A"].latency_ms_median is None
    assert rows["B"].status == "ok"


def test_a_runtime_that_lies_about_its_outputs_gets_no_number() -> None:
    rows = run(ScriptedRuntime({"A": Script(max_error=0.4), "B": Script(max_error=float("inf"))}), "A", "B", "C")
    assert rows["A"].status == "wrong" and "off by 0.4" in rows["A"].reason
    assert rows["B"].status == "wrong" and "not finite" in rows["B"].reason
    assert rows["C"].status == "ok"


def test_a_workload_that_lost_its_session_is_measured_again() -> None:
    runtime = ScriptedRuntime({"A": Script(run_error=LOST, fail_after=2, errors_left=1)})
    rows = run(runtime, "A", "B")
    assert rows["A"].status == "ok" and rows["B"].status == "ok"
    assert runtime.loads.count("A") == 2


def test_a_session_lost_again_and_again_is_given_up() -> None:
    rows = run(ScriptedRuntime({"A": Script(run_error=LOST)}), "A", "B")
    assert rows["A"].status == "failed" and "lost its session 3 times" in rows["A"].reason
    assert rows["B"].status == "ok"


def test_drift_that_the_reference_sees_is_left_out_of_the_statistics() -> None:
    # The machine is twice as slow for three rounds of four visits each.
    drift = [1.0] * 16 + [2.0] * 12 + [1.0] * 200
    log = RunLog()
    limits = replace(QUICK, min_rounds=9, max_rounds=20, lockstep=True)
    rows = run(ScriptedRuntime({}, drift=drift), "A", "B", "C", limits=limits, log=log)
    assert log.summary(limits.drift)["disturbed_rounds"] > 0  # type: ignore[operator]
    assert all(row.latency_ms_median == pytest.approx(1.0, rel=0.02) for row in rows.values())


def test_groups_stay_within_the_memory_there_is() -> None:
    runtime = ScriptedRuntime({}, capacity=250.0)  # two artifacts of about 103 MB
    most = 0

    def watch(event: object) -> None:
        nonlocal most
        most = max(most, runtime.open_sessions)

    rows = list(measure([job(n) for n in "ABCDE"], runtime, QUICK, np.random.default_rng(0), progress=watch))
    assert len(rows) == 5 and most <= 2


def test_raw_samples_are_kept_round_by_round(tmp_path: Path) -> None:
    path = tmp_path / "fake.samples.csv.gz"
    run(ScriptedRuntime({}), "A", "B", log=RunLog(path))
    with gzip.open(path, "rt") as file:
        rows = list(csv.DictReader(file))
    names = {row["key"].split("(")[0] for row in rows}
    assert names == {"A", "B", "Reference"}
    assert {row["round"] for row in rows} >= {"0", "5"}
    assert any(row["first"] == "1" for row in rows) and all(0.5 < float(row["ms"]) < 2 for row in rows)
    assert all(None not in row and None not in row.values() for row in rows), "every column has its value"
    assert {row["interrupted"] for row in rows} == {"0"}
    beside = [row["beside_ms"] for row in rows if not row["key"].startswith("Reference")]
    assert all(0.5 < float(ms) < 2 for ms in beside)


def test_records_come_as_soon_as_they_are_known() -> None:
    runtime = ScriptedRuntime({"B": Script(noise=0.2)})
    rows = measure([job("A"), job("B")], runtime, replace(QUICK, max_rounds=40), np.random.default_rng(0))
    first = next(rows)
    visits = len(runtime.visits)
    assert first.block == "A"
    assert [row.block for row in rows] == ["B"] and len(runtime.visits) > visits


def test_stopping_in_the_middle_closes_every_session() -> None:
    runtime = ScriptedRuntime({"B": Script(noise=0.3)})
    rows = measure([job("A"), job("B")], runtime, QUICK, np.random.default_rng(0))
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    assert runtime.closed


def test_slope_takes_the_overhead_of_a_call_off() -> None:
    copies = Job(job("A").workload, "plain", (artifact("A"),) * 3, "slope", (1, 2, 4))
    found = latency_of(copies, [[1.5] * 3, [2.5] * 3, [4.5] * 3])
    assert found.median == pytest.approx(1.0) and found.overhead_ms == pytest.approx(0.5)
    bent = latency_of(copies, [[1.5] * 3, [2.5] * 3, [9.0] * 3])
    assert any("not a line" in note for note in bent.notes)


def test_in_context_is_the_difference_of_two_segments() -> None:
    both = Job(job("A").workload, "plain", (artifact("A"), artifact("B")), "in_context", (1, 0))
    assert latency_of(both, [[3.0] * 3, [2.0] * 3]).median == pytest.approx(1.0)
    assert latency_of(both, [[2.0] * 3, [2.5] * 3]).notes


def test_a_segments_own_weights_are_not_billed_to_the_block() -> None:
    runtime = ScriptedRuntime({"A": Script(ms=3.0), "B": Script(ms=2.0)})
    both = Job(job("A").workload, "plain", (artifact("A"), artifact("B")), "in_context", (1, 0))
    (row,) = measure([both], runtime, QUICK, np.random.default_rng(0))
    assert row.latency_ms_median == pytest.approx(1.0, rel=0.05) and row.method == "in_context"
    assert row.weights_mb == 0
