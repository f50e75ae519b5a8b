"""Networks spelled in letters, and where sorted strings rank among all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from image_fixtures import TRANSFORMER, image_space
from table_fixtures import small_table

from latency_tables import Table
from nas.run.costs import cost_model
from nas.search.letters import find
from search_spaces.errors import SpaceError
from search_spaces.letters import is_sorted, read, spell, stages_of, strings
from search_spaces.planning import compute
from search_spaces.space import Space


def test_a_network_is_spelled_and_read_back() -> None:
    space = image_space()
    arrangement = space.arrange(
        {"down.0.0.0": ["FullConv"], "down.1.0.0": [TRANSFORMER], "up.0.0.0": ["FullConv"], "up.1.0.0": [TRANSFORMER]}
    )
    assert spell(space, arrangement) == "C-T-C-T" and read(space, "C-T-C-T") == read(space, "CTCT") == arrangement
    assert spell(space, read(space, "CT")) == "C-T-T-C"  # the way up mirrors the way down
    ascan = Space.load("ascan")
    assert spell(ascan, ascan.baseline()) == "-".join(["CCTT"] * 8)
    assert stages_of(ascan, "CCCCCCCTCCTTTTTT") == "CCCC-CCCT-CCTT-TTTT" and is_sorted("CCCT") and not is_sorted("CTC")


@pytest.mark.parametrize(
    "letters, message",
    [
        ("CX", r"letters 'CX': place 2, down.1.0.0: unknown letter 'X'. Known letters: C, T"),
        ("CTC", "3 of them, but pictures has 4 places"),
    ],
)
def test_wrong_letters_are_one_line(letters: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message) as caught:
        read(image_space(), letters)
    assert "\n" not in str(caught.value)
    with pytest.raises(SpaceError, match="cannot be spelled"):
        read(Space.load("tiny"), letters)


def test_the_front_over_all_strings_is_exact() -> None:
    space = image_space()
    costs = cost_model(space, small_table(compute(space)))  # type: ignore[arg-type]
    loss = {"CC": 3.0, "CT": 1.0, "TC": 2.0, "TT": 4.0}
    found = find(space, costs, lambda arrangement: loss[spell(space, arrangement).replace("-", "")[:2]])
    assert {row.letters for row in found.rows} == set(strings(space)) == set(loss)
    for row in found.rows:
        rivals = [other for other in found.rows if other.latency_ms <= row.latency_ms]
        ahead = [o for o in rivals if o.loss < row.loss or (o.latency_ms < row.latency_ms and o.loss == row.loss)]
        assert row.on_front == (not ahead)
        assert row.beaten_by == sum(o.loss < row.loss for o in rivals) / len(rivals)
    table = small_table(compute(space))  # type: ignore[arg-type]
    rows = [
        replace(row, status="failed", latency_ms_median=None) if "FullConv/c16" in row.key else row for row in table
    ]
    some = find(space, cost_model(space, Table(table.header, rows)), lambda arrangement: 1.0)
    assert len(some.rows) == 2 and "2 more strings hold a block" in some.render()
    told = found.to_json()
    assert told["strings"] == 4 and told["sorted"] == 3 and told["front_letters"][-1] == "C-T"
    assert told["without_number"] == 0 and "no number" not in found.render()
    assert "3 of 4 strings have every C before every T" in found.render()
