"""Damaged tables: never a traceback, never a wrong number in silence."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from table_fixtures import small_header, small_record

from latency_tables import COLUMNS, Header, Table, TableError
from latency_tables.files import unix_lines
from latency_tables.header import parse_yaml
from latency_tables.table import seal

KEYS = ("Conv1D(kernel_size=3)/c16/t8/48x48/b1@fp32", "backbone:small/t8/48x48/b1@fp32")
TABLE = Table(
    small_header(notes="two cores", additivity={"mape": 0.012, "networks": 20}),
    [
        small_record(KEYS[0], 1.25, extra=(("energy_mj", 3.5),)),
        small_record(KEYS[1], None, status="oom", reason="4 GB"),
    ],
)
with tempfile.TemporaryDirectory() as _folder:
    _path = TABLE.save(Path(_folder) / "t.csv")
    CSV, YAML = _path.read_bytes(), _path.with_suffix(".yaml").read_bytes()

QUIET = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """``data`` with a few bytes replaced, cut out, put in or doubled."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.integers(start, min(len(data), start + 40)))
        piece = draw(
            st.one_of(
                st.binary(max_size=8),
                st.sampled_from([b"", b",", b"\n", b'"', b"-", b"nan", b"1e9", b"0", b": ", b"&a", b"*a", b"[", b"\r"]),
                st.just(data[start:stop] * 2),
            )
        )
        data = data[:start] + piece + data[stop:]
    return data


def load(table: bytes, header: bytes, accept: bool = False) -> Table | None:
    """The table that the bytes hold, or ``None`` if they are refused in one line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_bytes(table)
        path.with_suffix(".yaml").write_bytes(header)
        try:
            return seal(path) if accept else Table.load(path)
        except TableError as error:
            assert "\n" not in str(error) and len(str(error)) > 20
            return None


@QUIET
@given(data=damaged(CSV))
def test_a_damaged_csv_is_refused_or_is_the_table_itself(data: bytes) -> None:
    assert load(data, YAML) == (Table(header_as_saved(), TABLE) if unix_lines(data) == CSV else None)


@QUIET
@given(header=damaged(YAML))
def test_a_damaged_header_is_refused_or_says_the_same(header: bytes) -> None:
    found = load(CSV, header)
    assert found is None or found == Table(header_as_saved(), TABLE)


@QUIET
@given(data=damaged(CSV), header=damaged(YAML))
def test_accepting_any_edit_ends_in_a_valid_table_or_one_line(data: bytes, header: bytes) -> None:
    found = load(data, header, accept=True)
    if found is not None:
        for record in found:
            assert not record.ok or (record.latency_ms_median or 0.0) > 0.0
            assert tuple(record.to_row()) and record.key


CELL = st.one_of(
    st.sampled_from(["", "0", "-0.0", "1", "2.5", "1e3", "1e-9", "nan", "inf", "1_0", " 1", "ok", "oom", "estimated"]),
    st.floats(allow_nan=False, allow_infinity=False).map(str),
    st.text(alphabet=st.characters(codec="utf-8"), max_size=12),
)


@QUIET
@given(changes=st.dictionaries(st.sampled_from(COLUMNS[1:]), CELL, max_size=4))
def test_any_cells_are_a_row_that_survives_the_file_or_one_line(changes: dict[str, str]) -> None:
    row = dict(zip(COLUMNS, small_record(KEYS[0]).to_row(), strict=True)) | changes
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([COLUMNS, [row[name] for name in COLUMNS]])
    found = load(buffer.getvalue().encode(), YAML, accept=True)
    if found is not None:
        again = load(found.to_csv(), YAML, accept=True)
        assert again is not None and again.records == found.records


@QUIET
@given(text=st.text(alphabet="abc:-[]{}&*!|>'\"#?%@, \n\t01.e~", max_size=60))
def test_any_text_is_a_mapping_or_one_line(text: str) -> None:
    try:
        assert isinstance(parse_yaml(text.encode()), dict)
    except TableError as error:
        assert "\n" not in str(error)


def header_as_saved() -> Header:
    found = load(CSV, YAML)
    assert found is not None
    return found.header
