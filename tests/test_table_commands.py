"""The table commands: what they print, the exit codes, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from table_fixtures import plan_json, small_header, small_plan, small_record, small_table

from latency_tables import CostModel, Plan, TableError
from latency_tables.cli import main
from latency_tables.coverage import coverage
from latency_tables.diff import diff
from latency_tables.predict import video_time
from latency_tables.reference import References, with_run
from latency_tables.table import Table, table_path
from latency_tables.validate import validate


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    table = small_table()
    table.save(table_path(tmp_path / "tables", table.header.device, table.header.runtime))
    (tmp_path / "small.plan.json").write_text(json.dumps(plan_json()))
    return tmp_path


def run(folder: Path, *words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main([words[0], "--dir", str(folder / "tables"), *words[1:]])
    out, err = capsys.readouterr()
    return code, out, err


def changed(table: Table, key: str, **changes: Any) -> Table:
    rows = [replace(row, **changes) if row.key == key else row for row in table]
    return Table(table.header, rows)


def test_list_and_show_name_every_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(folder, "list", "--json", capsys=capsys)
    mine = [entry for entry in json.loads(out) if entry["path"].startswith(str(folder))]
    assert code == 0 and len(mine) == 1
    code, out, _ = run(folder, "show", mine[0]["name"], "--json", capsys=capsys)
    assert code == 0 and len(json.loads(out)["rows"]) == mine[0]["rows"]
    code, out, _ = run(folder, "show", mine[0]["name"], "--match", "Conv1D", capsys=capsys)
    assert code == 0 and "Conv1D" in out and "SelfAttention3D" not in out


def test_coverage_names_what_is_missing_and_how_to_measure_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = small_plan()
    table = small_table(plan)
    whole = coverage(plan, table)
    assert whole.complete and not whole.missing
    lost = table.records[3]
    short = Table(table.header, [row for row in table if row.key != lost.key])
    short.save(folder / "short.csv")
    code, out, _ = run(folder, "coverage", str(folder / "small.plan.json"), str(folder / "short.csv"), capsys=capsys)
    assert code == 1 and f"missing {lost.key}" in out and "nas profile small" in out


def test_a_failed_workload_is_covered_with_its_reason(folder: Path) -> None:
    table = small_table()
    key = next(row.key for row in table if row.block != "backbone")
    refused = changed(
        table, key, status="oom", reason="needs 2 GB", latency_ms_median=None, latency_ms_p90=None, runs=None,
        latency_iqr_ratio=None, latency_low_ms=None, latency_high_ms=None,
    )  # fmt: skip
    found = coverage(small_plan(), refused)
    assert found.complete and found.failed == {key: "oom: needs 2 GB"}


def test_predict_holds_an_arrangement_to_a_budget(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = str(folder / "small.plan.json")
    device = small_header().device
    code, out, _ = run(folder, "predict", plan, "--device", device, "--json", capsys=capsys)
    bare = json.loads(out)
    assert code == 0 and bare["fits"] is None and bare["latency_low_ms"] < bare["latency_ms"] < bare["latency_high_ms"]
    limit = str(bare["latency_ms"] / 2)
    code, out, _ = run(folder, "predict", plan, "--device", device, "--latency-ms", limit, capsys=capsys)
    assert code == 1 and "breaks the budget: latency_ms by" in out and "nearest feasible budget" in out
    code, out, _ = run(folder, "predict", plan, "--device", device, "--steps", "4", "--guidance", capsys=capsys)
    assert code == 0 and "8 evaluations" in out


def test_a_video_is_text_encoder_and_steps_and_every_call_of_the_decoder() -> None:
    data = plan_json()
    data["text_encoder"] = {"workload": "text_encoder:small/l16x32/b1", "parameters": 10, "calls": 1}
    data["decoder"] = {"workload": "decoder:small/t2/8x8/b1", "parameters": 10, "calls": 5}
    table = small_table()
    table.append(small_record("text_encoder:small/l16x32/b1@fp32", 3.0, precision="fp32"))
    model = CostModel(Plan.from_json(data), table)
    partial = video_time(model, table, 10.0, 4)
    assert partial.total_ms is None and partial.missing == ("decoder:small/t2/8x8/b1@fp32",)
    table.append(small_record("decoder:small/t2/8x8/b1@fp32", 7.0, precision="fp32"))
    whole = video_time(model, table, 10.0, 4, guidance=True)
    assert (whole.evaluations, whole.network_ms, whole.total_ms) == (8, 80.0, 80.0 + 2 * 3.0 + 5 * 7.0)
    assert not whole.unlike
    with pytest.raises(TableError, match="--steps must be 1 or more"):
        video_time(model, table, 10.0, 0)
    guess = replace(table.get("decoder:small/t2/8x8/b1@fp32"), source="estimated", estimator="e")  # type: ignore[type-var]
    assert video_time(model, table.append(guess), 10.0, 4).unlike == ("decoder:small/t2/8x8/b1@fp32 (estimated)",)


def test_the_ends_of_the_model_are_part_of_what_is_covered() -> None:
    data = plan_json()
    data["text_encoder"] = {"workload": "text_encoder:small/l16x32/b1", "parameters": 10, "calls": 1}
    assert coverage(Plan.from_json(data), small_table()).missing == ("text_encoder:small/l16x32/b1@fp32",)


def test_what_a_phone_tells_of_memory_is_growth_and_no_error() -> None:
    rows = [
        replace(row, weights_mb=88.5, system_peak_mb=70.0, activation_peak_mb=0.01, channels=16, frames=8, height=48,
                width=48, batch=1)
        for row in small_table() if row.block == "Conv1D"
    ]  # fmt: skip
    host = {finding.rule: finding.level for finding in validate(Table(small_header(), rows))}
    phone = {
        finding.rule: finding.level
        for finding in validate(
            Table(small_header(runtime="coreml", runtime_version="Core ML of iOS 18.5 (22F76)"), rows)
        )
    }
    assert host["memory-under-weights"] == host["memory-under-tensor"] == "error"
    assert "memory-under-weights" not in phone and phone["memory-under-tensor"] == "warning"
    assert "stale-runtime" not in phone


def test_costs_answers_for_the_whole_space(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, device = str(folder / "small.plan.json"), small_header().device
    code, out, _ = run(folder, "costs", plan, "--device", device, "--json", capsys=capsys)
    found = json.loads(out)
    assert code == 0 and found["share"] is None
    least, most = (found["extremes"]["latency_ms"][sense]["value"] for sense in ("min", "max"))
    code, out, _ = run(folder, "costs", plan, "--device", device, "--latency-ms", str(most * 2), capsys=capsys)
    assert code == 0 and "with the margin kept" in out and "(100.0000%)" in out
    code, out, _ = run(folder, "costs", plan, "--device", device, "--latency-ms", str(least / 2), capsys=capsys)
    assert code == 1 and "nearest feasible budget" in out


def test_predict_refuses_layers_that_are_not_offered(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = str(folder / "small.plan.json")
    device = small_header().device
    code, out, err = run(folder, "predict", plan, "--device", device, "--layers", "down.9.9=Conv1D", capsys=capsys)
    assert code == 2 and not out and err.startswith("nas: ") and err.count("\n") == 1
    code, _, err = run(folder, "predict", plan, "--device", device, "--layers", "Conv1D", capsys=capsys)
    assert code == 2 and "POSITION=LABEL" in err


def test_equal_tables_have_no_difference() -> None:
    found = diff(small_table(), small_table())
    assert not found.changes and found.unchanged == len(small_table())


def test_a_row_slower_beyond_both_spreads_is_a_regression(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = small_table()
    row = next(row for row in table if row.block == "Conv3D")
    assert row.latency_ms_median is not None
    slower = changed(
        table, row.key, latency_ms_median=row.latency_ms_median * 1.5, latency_ms_p90=row.latency_ms_median * 1.6,
        latency_low_ms=row.latency_ms_median * 1.48, latency_high_ms=row.latency_ms_median * 1.52,
    )  # fmt: skip
    table.save(folder / "a.csv")
    slower.save(folder / "b.csv")
    code, out, _ = run(folder, "diff", str(folder / "a.csv"), str(folder / "b.csv"), "--markdown", capsys=capsys)
    assert code == 1 and "**1 regression**" in out and f"`{row.key}`" in out
    code, out, _ = run(folder, "diff", str(folder / "b.csv"), str(folder / "a.csv"), "--json", capsys=capsys)
    assert code == 0 and [change["kind"] for change in json.loads(out)["changes"]] == ["faster"]
    threshold = ("--threshold", "0.6")
    code, _, _ = run(folder, "diff", str(folder / "a.csv"), str(folder / "b.csv"), *threshold, capsys=capsys)
    assert code == 0


def test_a_run_that_was_slower_as_a_whole_is_no_regression() -> None:
    """Neighbours' load shifts everything, the reference workload included; latencies are divided by its change."""
    table = small_table(header=small_header(reference={"latency_ms": 10.0, "spread": 0.01}))
    latencies = ("latency_ms_median", "latency_ms_p90", "latency_low_ms", "latency_high_ms")
    rows = []
    for row in table:
        shifted = {name: getattr(row, name) * 1.4 for name in latencies if getattr(row, name) is not None}
        rows.append(replace(row, **shifted))
    loaded = Table(small_header(reference={"latency_ms": 14.0, "spread": 0.01}), rows)
    assert not diff(table, loaded).regressions
    blind = Table(replace(loaded.header, reference=None), rows)
    assert diff(table, blind).regressions


def keys_of(table: Table) -> list[tuple[str, str, str]]:
    return [record.primary_key for record in table]


@pytest.mark.parametrize("now", [1.25, 2.0])
def test_a_row_that_was_not_measured_again_has_not_changed(now: float) -> None:
    """One row more, on a better or a worse day: the reference of that day is not the other rows'."""
    before = small_table(header=small_header(reference={"key": "r", "latency_ms": 1.589, "spread": 0.02}))
    extra = small_record("Conv1D(kernel_size=5)/c16/t8/48x48/b1@fp32", 2.0, precision="fp32")
    run_of_it = {"key": "r", "latency_ms": now, "spread": 0.02}
    after = Table(before.header, [*before, extra])
    found = diff(before, Table(replace(before.header, reference=run_of_it), list(after)))
    assert found.unchanged == len(before) and not found.regressions
    assert {change.kind for change in found.changes} == {"added"}

    reference = with_run(after.header, keys_of(after), run_of_it, [extra.primary_key])
    assert reference is not None and reference["latency_ms"] == 1.589
    kept = Table(replace(before.header, reference=reference), list(after))
    assert References(kept.header)(extra.primary_key)["latency_ms"] == now
    assert References(kept.header)(before.records[0].primary_key)["latency_ms"] == 1.589
    slower = replace(extra, latency_ms_median=2.0 * 1.589 / now)  # as much as the machine is slower in the third run
    third = Table(replace(kept.header, reference={**run_of_it, "latency_ms": 1.589}), [*before, slower])
    assert not diff(kept, third).changes


def test_the_reference_of_a_run_that_measured_most_rows_becomes_the_tables() -> None:
    table = small_table(header=small_header(reference={"key": "r", "latency_ms": 1.0}))
    keys = keys_of(table)
    most = with_run(table.header, keys, {"key": "r", "latency_ms": 2.0}, keys[1:])
    assert most is not None and most["latency_ms"] == 2.0 and len(most["others"]) == 1
    again = Table(replace(table.header, reference=most), list(table))
    assert References(again.header)(keys[0])["latency_ms"] == 1.0
    assert with_run(again.header, keys, {"key": "r", "latency_ms": 3.0}, keys) == {"key": "r", "latency_ms": 3.0}
    unknown = replace(table.header, reference=with_run(table.header, keys, None, keys[:1]))
    assert "latency_ms" not in References(unknown)(keys[0])
    assert with_run(small_header(), keys, None, keys[:1]) is None


def test_a_row_that_disappeared_is_a_regression_unless_allowed() -> None:
    table = small_table()
    short = Table(table.header, table.records[1:])
    assert [change.kind for change in diff(table, short).regressions] == ["removed"]
    assert not diff(table, short, allow_removed=True).regressions


def test_validate_finds_a_3d_block_that_is_impossibly_cheap() -> None:
    table = small_table()
    row = next(row for row in table if row.block == "Conv3D")
    bad = changed(
        table, row.key, latency_ms_median=0.0001, latency_ms_p90=0.0001, latency_low_ms=None, latency_high_ms=None
    )
    rules = {finding.rule for finding in validate(bad) if finding.level == "error"}
    assert rules == {"3d-cheaper-than-1d"}
    assert not [finding for finding in validate(table) if finding.level == "error"]


def test_validate_says_that_a_damaged_file_cannot_be_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_table().save(folder / "a.csv")
    data = (folder / "a.csv").read_bytes()
    (folder / "a.csv").write_bytes(data[: len(data) // 2])
    code, out, _ = run(folder, "validate", str(folder / "a.csv"), capsys=capsys)
    assert code == 1 and "1 errors" in out


def test_merge_keeps_every_row_and_never_overwrites_a_third_table(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = small_table()
    half = len(table) // 2
    Table(table.header, table.records[:half]).save(folder / "a.csv")
    Table(table.header, table.records[half:]).save(folder / "b.csv")
    a, b, out = (str(folder / name) for name in ("a.csv", "b.csv", "c.csv"))
    code, _, _ = run(folder, "merge", a, b, "--out", out, capsys=capsys)
    assert code == 0 and Table.load(out).records == table.records
    small_table(seed=5).save(folder / "d.csv")
    code, _, err = run(folder, "merge", a, b, "--out", str(folder / "d.csv"), capsys=capsys)
    assert code == 2 and "give another --out" in err


def test_an_edited_table_is_refused_until_it_is_sealed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = small_table()
    table.append(small_record("Conv3D(kernel_size=9)/c16/t8/48x48/b1@fp32", 3.0, block="Conv3D"))
    table.save(folder / "a.csv")
    text = (folder / "a.csv").read_text()
    (folder / "a.csv").write_text("\n".join(text.splitlines()[:-1]) + "\n")
    code, _, err = run(folder, "show", str(folder / "a.csv"), capsys=capsys)
    assert code == 2 and err.count("\n") == 1
    assert run(folder, "seal", str(folder / "a.csv"), capsys=capsys)[0] == 0
    assert run(folder, "show", str(folder / "a.csv"), capsys=capsys)[0] == 0


@pytest.mark.parametrize(
    "words", [["show", "nowhere"], ["coverage", "no_space"], ["validate", "missing.csv"], ["nope"]]
)
def test_wrong_use_is_one_line_and_exit_code_2(words: list[str], tmp_path: Path) -> None:
    assert main([*words, "--dir", str(tmp_path)] if words != ["nope"] else words) == 2
