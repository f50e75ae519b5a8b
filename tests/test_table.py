"""A table on disk: sorted, reviewable, atomic, refused when damaged, shared by several writers."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from table_fixtures import small_header, small_record, small_table

import latency_tables.pair as pair_module
import latency_tables.table as table_module
from latency_tables import COLUMNS, Header, Table, TableError, table_path
from latency_tables.files import write_atomic
from latency_tables.header import dump_header, parse_header
from latency_tables.table import seal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return table_path(tmp_path, "host_cpu", "onnxruntime")


def key(name: str) -> str:
    return f"{name}/c16/t8/48x48/b1@fp32"


def test_a_table_lies_where_its_device_and_runtime_say(tmp_path):
    assert table_path(tmp_path, "host_cpu", "onnxruntime") == tmp_path / "host_cpu" / "onnxruntime.csv"


def test_save_and_load_give_the_same_table_and_the_same_bytes(path):
    table = small_table(header=small_header(notes="two cores", additivity={"mape": 0.012, "networks": 20}))
    table.append(small_record(key('Odd, block"s'), 1.5, reason='a "quoted", reason', extra=(("energy_mj", 3.25),)))
    table.save(path)
    again = Table.load(path)
    assert again == table
    before = path.read_bytes()
    assert Table(again.header, reversed(again.records)).to_csv() == before
    assert before.endswith(b"\n") and b"\r" not in before
    keys = [row[0] for row in csv.reader(before.decode().splitlines()[1:])]
    assert keys == sorted(keys)


def test_saving_what_did_not_change_writes_nothing(path):
    table = small_table()
    table.save(path)
    stamps = [os.stat(p).st_mtime_ns for p in (path, path.with_suffix(".yaml"))]
    table.save(path)
    Table.load(path).save(path)
    assert [os.stat(p).st_mtime_ns for p in (path, path.with_suffix(".yaml"))] == stamps


def test_get_prefers_context_then_the_fastest_ok_lowering():
    rows = [
        small_record(key("A"), 3.0, lowering="fused"),
        small_record(key("A"), 2.0, lowering="decomposed"),
        small_record(key("A"), None, lowering="linear", status="failed", reason="no kernel"),
        small_record(key("A"), 2.5, lowering="fused", method="in_context"),
        small_record(key("B"), None, status="oom", reason="4 GB"),
    ]
    table = Table(small_header(), rows)
    assert table.get(key("A")) == rows[3]
    assert table.get(key("A"), method="alone") == rows[1]
    assert table.get(key("A"), lowering="fused", method="alone") == rows[0]
    assert table.get(key("B")) is None and table.rows(key("B")) == (rows[4],)
    assert table.get(key("C")) is None


def test_a_measurement_is_believed_over_a_faster_estimate():
    table = small_table()
    measured = table.records[1]
    guess = replace(measured, lowering="fused", latency_ms_median=0.001, source="estimated", estimator="e")
    assert table.append(guess).get(measured.key) == measured


def test_a_failure_counts_as_a_row_unless_it_is_to_be_tried_again():
    table = Table(small_header(), [small_record(key("B"), None, status="unstable"), small_record(key("A"))])
    assert table.missing([key("C"), key("B"), key("A"), key("C")]) == (key("C"),)
    assert table.missing([key("B"), key("A")], retry=("unstable",)) == (key("B"),)


def test_append_replaces_the_row_of_the_same_primary_key():
    table = Table(small_header(), [small_record(key("A"), 1.0)])
    assert table.append([small_record(key("A"), 2.0)]) is table
    assert [row.latency_ms_median for row in table] == [2.0]
    with pytest.raises(TableError, match="stands twice"):
        Table(small_header(), [small_record(key("A"), 1.0), small_record(key("A"), 2.0)])


def test_rows_of_another_precision_are_refused():
    with pytest.raises(TableError, match="does not belong in a table of fp32"):
        Table(small_header(), [small_record("A/c16@fp16")])


def test_sources_are_counted_and_named():
    table = Table(small_header(), [small_record(key("A")), small_record(key("B"), source="estimated")])
    assert table.sources == {"measured": 1, "estimated": 1}
    assert table.source == "mixed: 1 measured, 1 estimated"


def test_frame_keeps_unknown_as_missing():
    frame = Table(small_header(), [small_record(key("A"), activation_peak_mb=None)]).frame()
    assert list(frame.columns) == list(COLUMNS)
    assert frame["activation_peak_mb"].isna().all() and frame["latency_ms_median"][0] == 1.0


@pytest.mark.parametrize(
    ("ours", "theirs", "wins"),
    [
        ({"latency_ms": None, "status": "failed"}, {"latency_ms": 9.0}, "theirs"),
        ({"latency_ms": 9.0}, {"latency_ms": 1.0, "source": "estimated"}, "ours"),
        ({"latency_ms": 9.0, "source": "imported"}, {"latency_ms": 9.5, "source": "measured"}, "theirs"),
        ({"latency_ms": 9.0, "runs": 10}, {"latency_ms": 9.5, "runs": 50}, "theirs"),
        ({"latency_ms": 9.0, "latency_iqr_ratio": 0.01}, {"latency_ms": 8.0, "latency_iqr_ratio": 0.2}, "ours"),
        ({"latency_ms": 9.0}, {"latency_ms": 8.0}, "theirs"),
    ],
)
def test_merge_keeps_the_better_row_whichever_table_is_asked(ours, theirs, wins):
    first = Table(small_header(), [small_record(key("A"), **ours), small_record(key("B"))])
    second = Table(small_header(), [small_record(key("A"), **theirs), small_record(key("C"))])
    merged = first.merge(second)
    assert merged.keys == (key("A"), key("B"), key("C"))
    assert merged.rows(key("A"))[0] == {"ours": first, "theirs": second}[wins].rows(key("A"))[0]
    assert merged.records == second.merge(first).records
    assert len(first) == len(second) == 2
    assert first.merge(second, prefer="ours").rows(key("A")) == first.rows(key("A"))
    assert first.merge(second, prefer="theirs").rows(key("A")) == second.rows(key("A"))
    with pytest.raises(TableError, match="choose with --prefer"):
        first.merge(second, prefer="error")


def test_merge_drops_evidence_that_belongs_to_other_rows():
    first = Table(small_header(additivity={"mape": 0.01}), [small_record(key("A"))])
    second = Table(small_header(), [small_record(key("B"))])
    assert first.merge(second).header.additivity is None
    assert first.merge(Table(small_header(), [])).header.additivity == {"mape": 0.01}


def test_another_runtime_version_does_not_mix(path):
    Table(small_header(), [small_record(key("A"))]).save(path)
    newer = Table(small_header(runtime_version="1.32.0"), [small_record(key("B"))])
    with pytest.raises(TableError, match=r"runtime_version 1\.32\.0 and 1\.31\.1"):
        newer.merge(Table.load(path))
    before = path.read_bytes()
    with pytest.raises(TableError, match="folders of their own"):
        newer.save(path)
    assert path.read_bytes() == before
    newer.save(path, replace=True)
    assert Table.load(path).keys == (key("B"),)


def test_two_writers_each_keep_their_rows_and_their_changes(path):
    Table(small_header(), [small_record(key("A"), 1.0), small_record(key("B"), 1.0)]).save(path)
    first, second = Table.load(path), Table.load(path)
    first.append([small_record(key("C"))]).save(path)
    second.append([small_record(key("D")), small_record(key("A"), 7.0)])
    second.remove([small_record(key("B")).primary_key])
    second.header = Header(**{**second.header.__dict__, "notes": "second"})
    second.save(path)
    now = Table.load(path)
    assert now.keys == (key("A"), key("C"), key("D")) and now == second
    assert now.get(key("A")).latency_ms_median == 7.0 and now.header.notes == "second"
    first.append([small_record(key("E"))]).save(path)
    assert Table.load(path).keys == (key("A"), key("C"), key("D"), key("E"))


def _append_many(path: Path, writer: int, count: int) -> None:
    table = Table.load(path) if path.exists() else Table(small_header())
    for i in range(count):
        table.append([small_record(key(f"W{writer}N{i}"))]).save(path)


def test_concurrent_processes_lose_no_row_and_readers_always_see_a_whole_table(path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(path, i, 12)) for i in range(3)]
    for process in writers:
        process.start()
    seen = 0
    while any(process.is_alive() for process in writers):
        if path.exists():
            size = len(Table.load(path))
            assert size >= seen
            seen = size
    for process in writers:
        process.join()
        assert process.exitcode == 0
    assert len(Table.load(path)) == 36
    assert sorted(p.name for p in path.parent.iterdir()) == [".gitattributes", "onnxruntime.csv", "onnxruntime.yaml"]


def test_killed_at_any_moment_the_pair_loads_and_the_next_run_goes_on(path):
    context = multiprocessing.get_context("fork")
    for round_ in range(4):
        process = context.Process(target=_append_many, args=(path, round_, 10_000))
        before = len(Table.load(path)) if path.exists() else 0
        process.start()
        while not path.exists() or len(Table.load(path)) < before + 3:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert len(Table.load(path)) >= before + 3
    for left in path.parent.glob(".*.partial"):  # what is younger than half a second may yet be somebody's
        os.utime(left, (0, 0))
    Table.load(path).append([small_record(key("last"))]).save(path)
    assert key("last") in Table.load(path)
    assert not [p for p in path.parent.iterdir() if p.suffix == ".partial"]


class _Crash(BaseException):
    pass


@pytest.mark.parametrize("write", [1, 2, 3])
def test_a_crash_between_any_two_writes_leaves_a_pair_that_loads(path, monkeypatch, write):
    Table(small_header(), [small_record(key("A"))]).save(path)
    table = Table.load(path).append([small_record(key("B"))])
    done = []

    def crash(target: Path, data: bytes) -> None:
        write_atomic(target, data)
        done.append(target.suffix)
        if len(done) == write:
            raise _Crash

    monkeypatch.setattr(pair_module, "write_atomic", crash)
    with pytest.raises(_Crash):
        table.save(path)
    monkeypatch.undo()
    assert done == [".yaml", ".csv", ".yaml"][:write]
    found = Table.load(path)
    assert found.keys == ((key("A"),) if write == 1 else (key("A"), key("B")))
    found.append([small_record(key("C"))]).save(path)
    assert key("C") in Table.load(path)


def test_a_table_cut_at_any_byte_is_refused_with_the_remedy(path):
    table = Table(small_header(), [small_record(key("A"))])
    table.save(path)
    table.append([small_record(key("B"))]).save(path)  # cut after A's line it would be the CSV of the save before
    data, header = path.read_bytes(), path.with_suffix(".yaml")
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(TableError, match="restore both files from git, or accept the edit"):
            Table.load(path)
    path.write_bytes(data)
    text = header.read_bytes()
    for length in range(len(text)):
        header.write_bytes(text[:length])
        try:
            found = Table.load(path)
        except TableError as error:
            assert "\n" not in str(error)
        else:
            assert found == table
    header.unlink()
    with pytest.raises(TableError, match="header onnxruntime.yaml is missing"):
        Table.load(path)


def test_saving_over_a_damaged_table_changes_nothing(path):
    Table(small_header(), [small_record(key("A"))]).save(path)
    path.write_bytes(path.read_bytes()[:-5])
    before = path.read_bytes()
    with pytest.raises(TableError, match="cut short"):
        Table(small_header(), [small_record(key("B"))]).save(path)
    assert path.read_bytes() == before


def test_an_edit_by_hand_is_noticed_and_can_be_accepted(path):
    small_table().save(path)
    path.write_text(path.read_text().replace("5.00000", "6.00000"))
    with pytest.raises(TableError, match="accept the edit"):
        Table.load(path)
    seal(path)
    assert Table.load(path).get("backbone:small/t8/48x48/b1@fp32").latency_ms_median == 6.0
    path.write_text(path.read_text().replace("6.00000", "fast"))
    with pytest.raises(TableError, match="'fast', no number"):
        seal(path)


def test_a_full_disk_is_one_line_and_leaves_the_old_table(path, monkeypatch):
    small_table().save(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TableError, match="No space left on device.*untouched"):
        Table.load(path).append([small_record(key("Z"))]).save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before and len(Table.load(path)) == len(small_table())
    assert not [p for p in path.parent.iterdir() if p.suffix == ".partial"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TableError, match="choose another folder"):
        small_table().save(tmp_path / "file" / "t.csv")


def test_a_newer_schema_is_refused_and_an_older_one_migrates(path, monkeypatch):
    small_table().save(path)
    header = path.with_suffix(".yaml")
    mapping, sums = parse_header(header.read_bytes())
    header.write_bytes(dump_header({**mapping, "schema": 2}, sums))
    with pytest.raises(TableError, match="schema 2 is newer than the 1 known here; update temporal-nas"):
        Table.load(path)
    header.write_bytes(dump_header({**mapping, "chipset": "x", "schema": 1}, sums))
    with pytest.raises(TableError, match="unknown field 'chipset'"):
        Table.load(path)
    monkeypatch.setattr(table_module, "SCHEMA", 2)
    monkeypatch.setattr("latency_tables.header.SCHEMA", 2)

    def rename(head, rows):
        head = dict(head)
        head["chip"] = head.pop("chipset")
        return head, rows

    monkeypatch.setitem(table_module.MIGRATIONS, 1, rename)
    monkeypatch.setattr(Header, "__post_init__", lambda self: None)
    assert Table.load(path).header.chip == "x"


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[1]", "a: b", "schema: 1", "schema: true", "schema: 1\nschema: 1", "? [a]\n: b",
        "a: &x [1]\nb: *x", "schema: 1\ncreated: 2026-13-45", "a: !!python/object:os.system x", "[" * 5000, "\x00",
        "1: 2", "a: 0x" + "f" * 9000, "a: " + "9" * 5000,
    ],
)  # fmt: skip
def test_yaml_that_is_no_header_is_refused_in_one_line(path, text):
    small_table().save(path)
    path.with_suffix(".yaml").write_text(text)
    with pytest.raises(TableError) as error:
        Table.load(path)
    assert "\n" not in str(error.value) and "onnxruntime.yaml" in str(error.value)


def test_a_header_of_a_stranger_runs_nothing(tmp_path):
    proof = tmp_path / "ran"
    with pytest.raises(TableError, match="is no YAML .*tag"):
        parse_header(f'schema: 1\na: !!python/object/apply:os.system ["touch {proof}"]'.encode())
    assert not proof.exists()


def test_header_values_are_plain_and_survive_the_file(path):
    header = small_header(created="2026-01-02", details={"threads": 1, "ok": True, "list": [1, 2.5, "a"], "none": None})
    Table(header, [small_record(key("A"))]).save(path)
    raw = yaml.safe_load(path.with_suffix(".yaml").read_text())
    assert raw["schema"] == 1 and list(raw)[-2:] == ["header_checksum", "csv_checksums"]
    loaded = Table.load(path).header
    assert loaded.details == header.details and loaded.created == "2026-01-02" and loaded.updated
    for bad in ({"details": {"x": object()}}, {"additivity": {"mape": float("nan")}}, {"details": {1: 2}}, {"chip": 3}):
        with pytest.raises(TableError, match="table header"):
            small_header(**bad)
    with pytest.raises(TableError, match="plain name"):
        small_header(device="../x")
    assert json.dumps(loaded.to_mapping())
