"""Table files among other people's: line ends, wrong types, links, names taken, and text that is no markup."""

from __future__ import annotations

import copy
import errno
import fcntl
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from table_fixtures import small_header, small_plan, small_record, small_table

from latency_tables import Header, Plan, Table, TableError
from latency_tables.cli import main
from latency_tables.diff import diff, markdown, plain
from latency_tables.files import write_atomic
from latency_tables.header import parse_header
from latency_tables.lookup import known_tables
from latency_tables.report.page import write_page
from latency_tables.report.table_page import render_table
from latency_tables.table import PACKAGED, seal
from latency_tables.validate import validate
from latency_tables.versions import previous
from search_spaces.errors import SpaceError

EVIDENCE: dict[str, Any] = {
    "additivity": {
        "space": "small",
        "mape": 0.012,
        "worst": 0.03,
        "interval": 0.02,
        "kendall_tau": 0.95,
        "networks": 20,
        "samples": [{"predicted_ms": 10.0, "measured_ms": 10.2, "layers": 3}],
    },
    "correction": {
        "space": "small",
        "form": "scale",
        "networks": 20,
        "offset_ms": 0.0,
        "scale": 1.02,
        "per_layer_ms": 0.0,
        "mape": 0.01,
        "worst": 0.03,
        "interval": 0.02,
        "bare_mape": 0.02,
    },
    "reference": {
        "key": "Reference",
        "latency_ms": 1.5,
        "spread": 0.01,
        "rounds": 30,
        "others": [{"key": "Reference", "latency_ms": 1.6, "spread": 0.02, "rows": ["a / default / alone"]}],
    },
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return small_table(header=small_header(**EVIDENCE)).save(tmp_path / "tables" / "host_cpu" / "onnxruntime.csv")


def windows(path: Path) -> None:
    """What a checkout with other line ends makes of a table."""
    for file in (path, path.with_suffix(".yaml")):
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))


def test_a_checkout_with_other_line_ends_is_the_same_table(path: Path) -> None:
    before = Table.load(path)
    windows(path)
    assert Table.load(path) == before and not [f for f in validate(path) if f.level == "error"]
    Table.load(path).append(small_record("Conv1D(kernel_size=9)/c16/t8/48x48/b1@fp32")).save(path)
    assert b"\r" not in path.read_bytes() and len(Table.load(path)) == len(before) + 1
    windows(path)
    assert len(seal(path)) == len(before) + 1


def test_git_has_no_other_version_of_a_table_with_other_line_ends(path: Path) -> None:
    def git(*words: str) -> None:
        known = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(path.parent), *known, *words], check=True, capture_output=True)

    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "one")
    windows(path)
    assert previous(path) is None


def test_tables_that_are_kept_tell_git_to_leave_their_line_ends_alone(path: Path, tmp_path: Path) -> None:
    attributes = path.parent / ".gitattributes"
    assert "*.csv text eol=lf" in attributes.read_text()
    attributes.write_text("mine\n")
    Table.load(path).append(small_record("Conv1D(kernel_size=9)/c16/t8/48x48/b1@fp32")).save(path)
    assert attributes.read_text() == "mine\n"
    small_table().save(tmp_path / "elsewhere.csv")
    assert not (tmp_path / ".gitattributes").exists()
    shipped = (Path(__file__).parent.parent / ".gitattributes").read_text()
    assert all(table.is_relative_to(PACKAGED) for table in known_tables(tmp_path / "none").values())
    assert "latency_tables/tables/** text eol=lf" in shipped


WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 10**18),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.lists(
        st.one_of(st.integers(), st.text(max_size=3), st.dictionaries(st.text(max_size=3), st.integers())), max_size=2
    ),
    st.dictionaries(st.text(max_size=4), st.one_of(st.integers(), st.text(max_size=3)), max_size=2),
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every field of nested mappings and lists, as the way to it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at + (key,) for key, _ in inner] + [way for key, item in inner for way in places(item, (*at, key))]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(data=st.data())
def test_any_value_anywhere_in_a_header_is_a_page_or_one_line(data: st.DataObject) -> None:
    """Whatever a header of the right checksum holds: it is refused in one line, or everything reads it."""
    evidence = copy.deepcopy(EVIDENCE)
    for _ in range(data.draw(st.integers(1, 2))):
        ways = places(evidence)
        if not ways:
            break
        *way, last = data.draw(st.sampled_from(ways))
        inside: Any = evidence
        for key in way:
            inside = inside[key]
        inside[last] = data.draw(WRONG)
    try:
        table = small_table(header=Header.from_mapping({**small_header().to_mapping(), **evidence}))
    except TableError as error:
        assert "\n" not in str(error) and str(error).startswith("table header: ")
        return
    render_table(table)
    validate(table)
    diff(table, small_table(seed=3))


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("mape", "small"), ("mape", -0.1), ("networks", 2.5), ("networks", True), ("samples", 3), ("samples", [1]),
        ("samples", [{"predicted_ms": "ten", "measured_ms": 1.0}]), ("samples", [{"predicted_ms": 1.0}]),
    ],
)  # fmt: skip
def test_evidence_of_the_wrong_kind_is_named(where: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=rf"additivity\.{where}.*must be"):
        small_header(additivity={**EVIDENCE["additivity"], where: value})


def test_a_wrong_header_is_one_line_in_a_report(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from latency_tables.header import dump_header

    header = path.with_suffix(".yaml")
    mapping, sums = parse_header(header.read_bytes())
    mapping["additivity"] = {**mapping["additivity"], "samples": [["predicted_ms", 3]]}
    whole = dump_header(mapping, sums)
    for cut in (whole, whole[: len(whole) // 2], yaml.safe_dump({"schema": 1}).encode(), b"\xff\xfe"):
        header.write_bytes(cut)
        assert main(["report", str(path), "--out", str(path.parent / "page.html")]) == 2
        told = capsys.readouterr().err
        assert told.startswith("nas: ") and told.count("\n") == 1 and not (path.parent / "page.html").exists()


def test_text_of_a_header_cannot_steer_a_terminal() -> None:
    header = small_header(notes="quiet\x1b[2J\nnight", details={"cpu": "\x1b]0;owned\x07"})
    assert header.notes == "quiet [2J night"
    assert "\x1b" not in str(header.details)


def test_a_plan_of_numbers_that_are_none_is_one_line(tmp_path: Path) -> None:
    import json

    from table_fixtures import plan_json

    for change in ({"channels": 10**30}, {"frames": "x"}, {"max_layers": True}, {"layers": {"a": 1}}, {"name": 4}):
        plan = plan_json()
        plan["positions"][0] |= change
        file = tmp_path / "a.plan.json"
        file.write_text(json.dumps(plan))
        with pytest.raises(SpaceError, match=r"positions\[0\]"):
            Plan.load(file)


def test_a_block_of_any_name_is_looked_at() -> None:
    plan = small_plan()
    table = small_table(plan)
    table.append(small_record("(3D/c16/t8/48x48/b1@fp32", block="(3D"))
    assert validate(table)


# Names taken ----------------------------------------------------------------------------------------------------------


def test_a_page_replaces_a_page_of_ours_and_nothing_else(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, captions = path.parent / "page.html", path.parent / "captions.csv"
    captions.write_text("video,caption\n")
    assert main(["report", str(path), "--out", str(page)]) == 0
    assert main(["report", str(path), "--out", str(page)]) == 0
    assert main(["diff", str(path), str(path), "--html", str(page)]) == 0
    capsys.readouterr()
    for words in (
        ["report", str(path), "--out", str(captions)],
        ["diff", str(path), str(path), "--html", str(captions)],
    ):
        assert main(words) == 2
        told = capsys.readouterr()
        assert "no page of ours" in told.err and "--overwrite" in told.err and not told.out
        assert captions.read_text() == "video,caption\n"
    assert main(["report", str(path), "--out", str(captions), "--overwrite"]) == 0
    assert captions.read_bytes().startswith(b"<!doctype html>")


def test_a_page_follows_no_link_and_takes_no_folder(tmp_path: Path) -> None:
    target, link, folder = tmp_path / "target.html", tmp_path / "link.html", tmp_path / "folder.html"
    write_page(target, '<meta name="generator" content="temporal-nas">')
    before = target.read_bytes()
    link.symlink_to(target)
    folder.mkdir()
    for taken in (link, folder):
        with pytest.raises(TableError, match="no page of ours"):
            write_page(taken, "new")
    write_page(link, "new", overwrite=True)
    assert target.read_bytes() == before and not link.is_symlink() and link.read_text() == "new"
    with pytest.raises(TableError, match="give another name$"):
        write_page(folder, "new", overwrite=True)


def test_a_temporary_file_is_none_that_somebody_could_have_put_there(tmp_path: Path, monkeypatch: Any) -> None:
    names = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda name, *more: names.append((str(name), more[0])) or real(name, *more))
    for _ in range(2):
        write_atomic(tmp_path / "a.csv", b"data")
    made = [(name, flags) for name, flags in names if name.endswith(".partial")]
    assert len({name for name, _ in made}) == 2 and str(os.getpid()) not in Path(made[0][0]).name.split(".")
    assert all(flags & os.O_EXCL and flags & os.O_NOFOLLOW for _, flags in made)


@pytest.mark.parametrize("beside", ["model: tiny\n", "- a list\n", ""])
def test_a_table_takes_no_other_files_place(path: Path, tmp_path: Path, beside: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(beside)
    with pytest.raises(TableError, match="no table's header"):
        Table.load(path).save(tmp_path / "config.csv", replace=True)
    assert config.read_text() == beside and not (tmp_path / "config.csv").exists()
    with pytest.raises(TableError, match="ends in .csv"):
        Table.load(path).save(config)


def test_a_file_system_without_locks_still_has_one_writer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    extra = small_record("Conv1D(kernel_size=9)/c16/t8/48x48/b1@fp32")
    Table.load(path).append(extra).save(path)
    assert extra.key in Table.load(path) and not list(path.parent.glob("*.lock"))
    (path.parent / ".table.lock").touch()
    from latency_tables.files import locked

    with (
        pytest.raises(TableError, match="another process holds this folder, or left its lock"),
        locked(path.parent, 0.01),
    ):
        pass


# Markdown -------------------------------------------------------------------------------------------------------------


def test_nothing_of_a_table_takes_effect_in_a_comment() -> None:
    nasty = "<img src=x> @someone #12 [a](http://b) www.c.d **x** `y`|z"
    before = small_table(header=small_header(device="a @team <b>"))
    after = small_table(header=small_header(device="a @team <b>", chip=nasty))
    after.append(small_record(f"{nasty}/c1@fp32", lowering=nasty))
    told = markdown(diff(before, after), limit=1000)
    for forbidden in ("<img", "@someone", "@team", " #12", "](", "http://", "www.", "**x**", "`y`"):
        assert forbidden not in told
    rows = [line for line in told.splitlines() if line.startswith("|")]
    assert {line.count("|") - line.count("\\|") for line in rows} == {8}
    assert "@someone" in plain(diff(before, after), limit=1000)
