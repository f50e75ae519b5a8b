"""A compute unit that answers wrongly is a row with status ``wrong``, and no cost is made of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from phone_standin import Behaviour, StandIn, artifacts, phones, run
from table_fixtures import small_header, small_plan, small_record, small_table
from test_coreml_mac import Mac, mac

from device_profiler.errors import WorkloadError, WrongAnswer
from device_profiler.lowering import Lowered
from device_profiler.measure import check_answers
from device_profiler.profile import missing_rows
from device_profiler.runtimes.contract import Facts
from device_profiler.runtimes.units import UNITS, evaluated, output_errors
from device_profiler.wanted import Wanted
from latency_tables import Table
from latency_tables.cost import CostModel
from latency_tables.diff import diff
from latency_tables.record import Record
from latency_tables.report.table_page import render_table
from latency_tables.validate import validate
from search_spaces.workload import Workload

__all__ = ["artifacts", "mac", "phones"]
KEY = "Conv1D(kernel_size=3)/c16/t8/48x48/b1@fp32"
WRONG = "its outputs are wrong on ane off by 0.4 of the largest value"


def test_a_phone_s_row_says_how_right_each_unit_is(phones: StandIn, artifacts: list[Lowered]) -> None:
    (row,) = run(phones, artifacts[:1])
    told = dict(row.extra)
    assert row.status == "ok" and set(told) == {
        "numeric_error_fp16", "numeric_error_fp32", "output_error_ane", "output_error_cpu",
    }  # fmt: skip
    assert told["numeric_error_fp32"] == pytest.approx(artifacts[0].stats["numeric_error"]["fp32"], abs=1e-6)
    assert told["output_error_ane"] == told["output_error_cpu"] < 2e-3


def test_a_neural_engine_that_answers_wrongly_is_no_fast_row(phones: StandIn, artifacts: list[Lowered]) -> None:
    phones.behave(Behaviour(lie_on="CPU_AND_NE"))
    (row,) = run(phones, artifacts[:1])
    assert row.status == "wrong" and row.latency_ms_median is None
    assert "wrong on ane off by 1 of" in row.reason and "right on cpu: use another compute_unit" in row.reason
    assert dict(row.extra)["output_error_ane"] > 0.9 and dict(row.extra)["output_error_cpu"] < 2e-3


def test_a_unit_that_is_not_asked_for_alone_is_asked_all_the_same(mac: Mac, artifacts: list[Lowered]) -> None:
    mac.behave(lie_on="CPU_AND_GPU")
    (row,) = mac.measure(artifacts[:1], "ALL")  # which the stand-in answers rightly
    assert row.status == "wrong" and "wrong on gpu off by 1" in row.reason and "right on cpu, ane" in row.reason
    mac.behave(lie_on="CPU_AND_GPU", refuse_on="CPU_ONLY")
    (row,) = mac.measure(artifacts[:1], "CPU_AND_NE")
    assert row.status == "ok" and set(dict(row.extra)) >= {"output_error_ane"}
    assert not {"output_error_gpu", "output_error_cpu"} & set(dict(row.extra))
    assert "cpu could not be asked alone: Error computing NN outputs." in row.reason


def test_a_unit_that_cannot_be_asked_is_said_so_and_left_unknown() -> None:
    def refuses(setting: str) -> float:
        raise WorkloadError(f"no {setting} here")

    assert output_errors("CPU_AND_NE", 0.001, refuses) == (
        {"ane": 0.001},
        ("cpu could not be asked alone: no CPU_ONLY here",),
    )
    asked: list[str] = []
    found, _ = output_errors("ALL", 0.0, lambda setting: float(asked.append(setting) is None))
    assert asked == ["CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"] and tuple(found) == UNITS["ALL"]


def test_what_the_evaluator_could_not_say_is_said() -> None:
    assert evaluated({"fp32": 1e-4, "fp16": None}) == ({"fp32": 1e-4}, ("not finite in fp16 by the evaluator",))
    unknown = {"fp32": None, "fp16": None, "reason": "the operation 'warp' is not known"}
    assert evaluated(unknown) == ({}, ("not evaluated: the operation 'warp' is not known",))
    assert evaluated(None) == ({}, ())


def test_an_error_that_is_not_finite_has_no_column_and_is_said() -> None:
    with pytest.raises(WrongAnswer, match="wrong on ane not finite or of another shape") as caught:
        check_answers(Facts(max_error=0.0, output_error={"cpu": 0.0, "ane": float("inf")}), 0.05, "plain")
    assert caught.value.found == {"output_error_cpu": 0.0}


def test_a_device_is_held_to_the_evaluator_where_it_has_a_finite_answer(artifacts: list[Lowered]) -> None:
    (lowered, *_) = artifacts
    evaluated = np.asarray(lowered.stats["evaluated"])
    output = np.zeros(lowered.output_shape, dtype=np.float32)
    output.reshape(-1)[list(lowered.expected_at)] = evaluated
    assert lowered.device_error_of(output) < 1e-6 < lowered.error_of(output)
    told = json.loads((lowered.folder / "lowered.json").read_text())
    assert len(told["stats"]["evaluated"]) == len(told["expected"])


def test_no_cost_is_made_of_a_wrong_row_and_diff_and_validate_know_it(tmp_path: Path) -> None:
    right = small_table()
    rows = [
        small_record(
            row.key, None, status="wrong", reason=WRONG, block=row.block, extra=(("output_error_ane", 0.4),)
        ) if row.key == KEY else row
        for row in right
    ]  # fmt: skip
    wrong = Table(right.header, rows)
    wrong.save(tmp_path / "t.csv")
    wrong = Table.load(tmp_path / "t.csv")
    assert dict(wrong.rows(KEY)[0].extra) == {"output_error_ane": 0.4} and wrong.get(KEY) is None
    costs = CostModel(small_plan(), wrong)
    asked = dict.fromkeys(costs.positions, ()) | {"down.0.0": ("Conv1D(kernel_size=3)",)}
    assert not np.isfinite(costs.cost([costs.encode(asked)]).latency_ms).any()
    (change,) = diff(right, wrong).changes
    assert change.regression and change.after.startswith("wrong: its outputs")
    (found,) = [finding for finding in validate(wrong) if finding.key == KEY]
    assert found.rule == "wrong-answer" and "no cost is made of it" in found.message
    assert f"wrong: {WRONG}" in render_table(wrong)
    fast = Table(right.header, [small_record(KEY, 0.1, extra=(("output_error_ane", 0.4),))])
    assert "wrong-but-ok" in {finding.rule for finding in validate(fast)}


def test_a_wrong_row_stays_until_it_is_asked_for_again() -> None:
    workload = Workload.parse(KEY)
    wanted = [Wanted(workload, "plain", "alone")]
    table = Table(small_header(), [Record(key=KEY, lowering="plain", status="wrong", reason=WRONG)])
    assert missing_rows(table, wanted) == [] and missing_rows(table, wanted, retry=True) == wanted
