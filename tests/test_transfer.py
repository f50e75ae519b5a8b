"""Rows of a device hardly measured: right where the devices differ as modelled, honest in their intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from table_fixtures import small_plan, small_table

from latency_tables import CostModel, Header, Record, Table, TableError
from latency_tables.cli import main
from latency_tables.transfer import transfer
from latency_tables.validate import validate

NEW = Header("new_board", "onnxruntime", precision="fp32")
BLOCKS = ("Conv1D", "Conv3D", "SelfAttention1D", "SelfAttention3D", "CrossAttention1D")


def table(header: Header, factor: dict[str, float], noise: float, seed: int, per_block: int = 8) -> Table:
    """``per_block`` sizes of each block; latency is size times the block's factor, with noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for block in BLOCKS:
        for i in range(per_block):
            ms = 2.0**i * factor.get(block, 1.0) * float(np.exp(noise * rng.standard_normal()))
            key = f"{block}(size={i})/c16/t8/48x48/b1@{header.precision}"
            rows.append(
                Record(
                    key,
                    "plain",
                    block=block,
                    precision=header.precision,
                    latency_ms_median=ms,
                    weights_mb=0.1,
                    activation_peak_mb=5.0,
                )  # fmt: skip
            )
    return Table(header, rows)


OLD = table(Header("old_board", "onnxruntime", precision="fp32"), {}, 0.0, 0)
TRUTH = table(NEW, {"Conv3D": 6.0, "SelfAttention3D": 2.0, **{b: 3.0 for b in BLOCKS if b.endswith("1D")}}, 0.05, 1)


def some(count: int, seed: int = 0) -> Table:
    rows = list(TRUTH)
    return Table(NEW, [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))[:count]])


def error(found: Table, keys: tuple[str, ...]) -> float:
    pairs = [(found.get(key), TRUTH.get(key)) for key in keys]
    return float(np.mean([abs(a.latency_ms_median / b.latency_ms_median - 1) for a, b in pairs if a and b]))


def test_more_rows_predict_better_and_better_than_scaling_by_a_constant() -> None:
    errors = {}
    for count in (3, 12):
        errors[count] = np.mean(
            [error(t.table, t.predicted) for t in (transfer(OLD, some(count, s)) for s in range(10))]
        )
    assert errors[12] < errors[3] and errors[12] < 0.12
    constant = []
    for seed in range(10):
        known = some(12, seed)
        scale = np.median([row.latency_ms_median / OLD.get(row.key).latency_ms_median for row in known])
        rest = [row for row in TRUTH if row.key not in known.keys]
        constant.append(
            np.mean([abs(OLD.get(r.key).latency_ms_median * scale / r.latency_ms_median - 1) for r in rest])
        )
    assert errors[12] < 0.5 * np.mean(constant)


def test_intervals_hold_what_they_promise() -> None:
    held = []
    for seed in range(20):
        found = transfer(OLD, some(8, seed))
        for key in found.predicted:
            row, truth = found.table.get(key), TRUTH.get(key)
            held.append(row.latency_low_ms <= truth.latency_ms_median <= row.latency_high_ms)
    assert 0.85 <= np.mean(held) <= 1.0


def test_the_rows_named_next_help_more_than_others() -> None:
    rng = np.random.default_rng(0)
    named, others = [], []
    for seed in range(10):
        start = some(3, seed)
        rest = [row.key for row in TRUTH if row.key not in start.keys]
        for keys, found in ((transfer(OLD, start, 3).next, named), (rng.choice(rest, 3, replace=False), others)):
            grown = transfer(OLD, Table(NEW, [*start, *(TRUTH.get(str(key)) for key in keys)]))
            pairs = [(grown.table.get(key), TRUTH.get(key)) for key in grown.predicted]
            held = np.mean([row.latency_low_ms <= true.latency_ms_median <= row.latency_high_ms for row, true in pairs])
            found.append((error(grown.table, grown.predicted), held))
    # Random rows leave out whole families, and then the intervals know too little of how families differ.
    assert np.mean(named, axis=0)[0] < 0.8 * np.mean(others, axis=0)[0]
    assert np.mean(named, axis=0)[1] >= max(0.85, np.mean(others, axis=0)[1])


def test_transferred_rows_say_so_and_drive_nothing_unasked() -> None:
    source = small_table()
    rows = list(source)
    target = Table(Header("new_board", "onnxruntime", precision="fp32"), rows[:4])
    found = transfer(source, target)
    assert found.table.sources == {"measured": 4, "estimated": len(rows) - 4}
    estimated = [row for row in found.table if row.source == "estimated"]
    assert all("transfer from host_cpu/onnxruntime, 4 measured rows" in row.estimator for row in estimated)
    assert all(row.runs is None and row.latency_iqr_ratio is None for row in estimated)
    assert not [finding for finding in validate(found.table) if finding.level == "error"]
    with pytest.raises(TableError, match="do not mix silently"):
        CostModel(small_plan(), found.table)
    assert "estimated" in CostModel(small_plan(), found.table, allow_mixed=True).source


def test_another_precision_moves_memory_along() -> None:
    half = Header("phone", "coreml", precision="fp16")
    few = Table(half, [r for r in table(half, {}, 0.0, 0) if r.key.startswith("Conv1D")])
    found = transfer(OLD, few)
    row = found.table.get(found.predicted[0])
    assert row is not None and row.key.endswith("@fp16") and row.weights_mb == pytest.approx(0.05)


def test_too_little_to_go_on_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TableError, match="share 1 workloads.*measure these first: "):
        transfer(OLD, some(1))
    with pytest.raises(TableError, match="nothing to transfer"):
        transfer(OLD, TRUTH)
    old, few, out = OLD.save(tmp_path / "old.csv"), some(5).save(tmp_path / "few.csv"), tmp_path / "out.csv"
    assert main(["transfer", str(old), str(few), "--out", str(out)]) == 0
    assert "measure next" in capsys.readouterr().out
    before = out.read_bytes()
    assert main(["transfer", str(old), str(few), "--out", str(out)]) == 0, "the same command, killed before its end"
    assert out.read_bytes() == before
    capsys.readouterr()
    more = some(6).save(tmp_path / "more.csv")
    assert main(["transfer", str(old), str(more), "--out", str(out)]) == 2
    assert "give another --out" in capsys.readouterr().err and out.read_bytes() == before
