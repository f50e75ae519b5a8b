"""Pages of tables: every section from real rows, honest about what is missing, nothing loaded from elsewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latency_tables.cli import main
from latency_tables.diff import compare, diff
from latency_tables.lookup import load_table
from latency_tables.report.table_page import best_rows, dimension_pairs, render_table
from latency_tables.table import Table
from latency_tables.versions import committed, previous

MEASURED, ESTIMATED = "amd_epyc_zen5", "iphone16_pro_max_roofline"


def figures(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found.group(1))


def changed(table: Table, factor: float, index: int) -> Table:
    """The table with one row's latencies multiplied."""
    names = ("latency_ms_median", "latency_ms_p90", "latency_low_ms", "latency_high_ms")
    rows = list(table)
    values = {name: getattr(rows[index], name) * factor for name in names if getattr(rows[index], name) is not None}
    rows[index] = replace(rows[index], **values)
    return Table(table.header, rows)


def repository(folder: Path, tables: list[Table]) -> Path:
    """A git repository in which the table has these versions, one commit each."""

    def git(*words: str) -> None:
        known = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(folder), *known, *words], check=True, capture_output=True)

    path = folder / "tables" / MEASURED / "onnxruntime.csv"
    git("init", "-q")
    for version, table in enumerate(tables):
        Table(table.header, list(table)).save(path, replace=True)
        git("add", "-A")
        git("commit", "-q", "--allow-empty", "-m", f"version {version}")
    return path


def test_the_page_shows_every_row_that_costs_are_made_of() -> None:
    table = load_table(MEASURED)
    page = render_table(table)
    drawn = figures(page)
    points = sum(len(trace["x"]) for trace in drawn["cost"]["data"])
    assert points == sum("backbone" not in row.key and "encoder" not in row.key for row in best_rows(table))
    assert len(drawn["networks"]["data"][1]["x"]) == table.header.additivity["networks"]  # type: ignore[index]
    assert "placement" not in drawn and "No row states a placement" in page
    assert "http://" not in page.replace("http://www.w3.org", "").partition('id="plotly"')[0]


def test_the_third_dimension_is_compared_at_the_same_shape() -> None:
    table = load_table(MEASURED)
    pairs = dimension_pairs(best_rows(table))
    assert pairs
    for _, one, three in pairs:
        assert one.block.endswith("1D") and three.block == one.block.replace("1D", "3D")
        assert (one.channels, one.frames, one.height) == (three.channels, three.frames, three.height)
    bars = figures(render_table(table))["dimension"]["data"][0]
    assert sorted(x + bars["base"] for x in bars["x"]) == pytest.approx(
        sorted(three.latency_ms_median / one.latency_ms_median for _, one, three in pairs)
    )


def test_estimates_are_called_so_at_the_top() -> None:
    page = render_table(load_table(ESTIMATED))
    assert '<p class="estimate"><strong>Estimated.</strong>' in page
    assert "Whole networks were not measured" in page and "estimated rows have no spread" in page


def test_placement_is_drawn_where_rows_state_it() -> None:
    table = load_table(MEASURED)
    first, *rest = table
    placed = replace(first, placement_ane=0.75, placement_gpu=0.0, placement_cpu=0.25)
    traces = {
        t["name"]: t["x"] for t in figures(render_table(Table(table.header, [placed, *rest])))["placement"]["data"]
    }
    assert traces == {"Neural Engine": [75.0], "GPU": [0.0], "CPU": [25.0]}


def test_two_devices_side_by_side_share_their_workloads_whatever_the_precision() -> None:
    drawn = figures(render_table(load_table(MEASURED), beside=load_table(ESTIMATED)))
    points = sum(len(trace["x"]) for trace in drawn["beside"]["data"] if trace["mode"] == "markers")
    assert points == len(best_rows(load_table(MEASURED)))


def test_a_row_is_marked_as_changed_exactly_when_the_diff_says_so() -> None:
    before = load_table(MEASURED)
    after = changed(changed(before, 2.0, 3), 0.5, 5)
    found = {change.key: change.kind for change in diff(before, after).changes if change.kind in ("slower", "faster")}
    rows = compare(before, after)
    assert {row.after.key for row in rows if row.beyond} == set(found) and len(found) == 2
    traces = {trace["name"]: trace for trace in figures(render_table(after, ("before", before)))["change"]["data"]}
    assert len(traces["slower"]["x"]) == 1 and traces["slower"]["x"][0] == pytest.approx(2.0)
    assert len(traces["faster"]["x"]) == 1 and traces["faster"]["x"][0] == pytest.approx(0.5)
    assert len(traces["within the spread"]["x"]) == len(rows) - 2


def test_the_last_other_version_comes_from_git(tmp_path: Path) -> None:
    table = load_table(MEASURED)
    path = repository(tmp_path, [changed(table, 3.0, 0), table, table])
    found = previous(path)
    assert found is not None
    assert found[1].records[0].latency_ms_median == pytest.approx(3.0 * (table.records[0].latency_ms_median or 0))
    assert committed(path, "HEAD").records == table.records


def test_the_command_compares_with_git_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = load_table(MEASURED)
    path = repository(tmp_path, [table, changed(table, 2.0, 0)])
    monkeypatch.chdir(tmp_path)
    assert main(["report", MEASURED]) == 0
    assert "changes since" in capsys.readouterr().out
    page = (tmp_path / f"{MEASURED}_onnxruntime.html").read_text()
    assert "1 regression</strong>" in page
    assert main(["report", str(path), "--since", "nonsense"]) == 2
    assert "name a revision that has it" in capsys.readouterr().err


def test_a_diff_page_stands_beside_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = load_table(MEASURED)
    first = Table(before.header, list(before)).save(tmp_path / "a" / MEASURED / "onnxruntime.csv")
    second = changed(before, 2.0, 0).save(tmp_path / "b" / MEASURED / "onnxruntime.csv")
    page = tmp_path / "pages" / "diff.html"
    assert main(["diff", str(first), str(second), "--html", str(page)]) == 1
    assert "1 regression" in capsys.readouterr().out
    assert "slower" in page.read_text() and list(figures(page.read_text())) == ["change"]


def test_names_from_a_table_cannot_break_the_page() -> None:
    table = load_table(MEASURED)
    header = replace(table.header, notes="<script>alert(1)</script>", chip='"><b>')
    page = render_table(Table(header, list(table)))
    assert "<script>alert" not in page and '"><b>' not in page


def test_without_the_drawing_libraries_one_line_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['plotly'] = None; sys.modules['jinja2'] = None\n"
        "from latency_tables.cli import main\n"
        f"raise SystemExit(main(['report', '{MEASURED}', '--out', {str(tmp_path / 'page.html')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("nas: pages need jinja2 and plotly")
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "page.html").exists()
