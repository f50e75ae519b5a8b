"""The tables that ship: sound, complete for their spaces, and plain about where their rows come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_profiler.device import list_devices
from latency_tables import CostModel, Plan, Table
from latency_tables.coverage import coverage
from latency_tables.lookup import table_paths
from latency_tables.table import PACKAGED
from latency_tables.validate import validate

PATHS = list(table_paths(PACKAGED))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.parent.name)
def test_a_shipped_table_is_sound_and_can_be_measured_again(path: Path) -> None:
    table = Table.load(path)
    assert not [finding for finding in validate(table) if finding.level == "error"]
    assert path.parent.name == table.header.device and table.header.device in list_devices()
    assert table.header.chip and table.header.runtime_version and table.header.created
    spaces = [plan for plan in map(Plan.load, ("tiny", "snapgen_v")) if coverage(plan, table).begun]
    assert spaces and all(coverage(plan, table).complete for plan in spaces)


def test_no_row_claims_to_have_been_measured_on_a_phone() -> None:
    sources = {path.parent.name: Table.load(path).source for path in PATHS}
    assert sources["iphone16_pro_max_roofline"] == "estimated"
    assert all("roofline" in name and source == "estimated" for name, source in sources.items() if "phone" in name)


def test_the_measured_table_carries_its_evidence() -> None:
    model = CostModel(Plan.load("tiny"), Table.load(PACKAGED / "amd_epyc_zen5" / "onnxruntime.csv"))
    assert model.source == "measured" and model.audit.state == "trusted" and model.audit.networks == 20
