"""What a network costs that runs frame by frame: a layer once a frame in time, and once in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from table_fixtures import small_header, small_record

from latency_tables.cost import CostModel
from latency_tables.errors import TableError
from latency_tables.predict import video_time, with_decoder
from latency_tables.table import Table
from nas.run.compare import in_one
from search_spaces.plan import Plan
from search_spaces.space import Space


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan.load("tiny_decoder")


def table(plan: Plan) -> Table:
    """Every call of anything takes a millisecond, 0.5 MB of weights and 2 MB alive."""
    rows = [small_record(f"{key}@fp32", 1.0, weights_mb=0.5) for key in plan.workloads]
    return Table(small_header(), rows)


def test_a_plan_says_what_runs_how_often(plan: Plan) -> None:
    frames = plan.clip["frames"]
    assert [position.calls for position in plan.positions] == [1, 1, frames, frames]
    (rest,) = plan.backbone_rest
    assert (rest.workload, rest.calls) == ("spatial:tiny_autoencoder.frame/t1/24x24/b1", frames)
    assert rest.live == frames * 32 * 24 * 24, "all frames of the last whole stage wait while one is decoded"
    assert all("/t1/" in layer.workload for position in plan.positions[2:] for layer in position.layers)
    assert Plan.from_json(plan.to_json()) == plan


def test_latency_counts_every_frame_and_memory_one(plan: Plan) -> None:
    costs = CostModel(plan, table(plan))
    found = costs.cost(costs.encode(plan.baseline.labels())[None])
    frames, (rest,) = plan.clip["frames"], plan.backbone_rest
    assert found.latency_ms[0] == pytest.approx(1 + frames + 2 * 1 + 2 * frames)
    assert found.weights_mb[0] == pytest.approx(6 * 0.5)
    assert found.activation_peak_mb[0] == pytest.approx(rest.live * 4 / 1e6 + 2.0)
    rows = costs.breakdown(costs.encode(plan.baseline.labels()))
    assert sum(row["latency_ms"] for row in rows) == pytest.approx(found.latency_ms[0])
    assert costs.column("latency_ms_median", costs.encode(plan.baseline.labels())[None])[0] == found.latency_ms[0]


def test_its_parts_measured_are_compared_as_one(plan: Plan) -> None:
    whole, each = small_record("a@fp32", 5.0, weights_mb=0.5), small_record("b@fp32", 2.0, weights_mb=0.25)
    one = in_one([whole, each], [1, 10], held_mb=3.0)
    assert (one.latency_ms_median, one.weights_mb, one.activation_peak_mb) == (25.0, 0.75, 5.0)
    failed = replace(each, status="oom", reason="too large", latency_ms_median=None)
    assert in_one([whole, failed], [1, 10], 3.0) is failed


def test_a_video_through_a_searched_decoder_is_costed_from_its_folder(tmp_path: Path) -> None:
    """Without torch: the arrangement stands in config.json, the plan beside it."""
    space, plan = Space.load("snapgen_v"), Plan.load("snapgen_v")
    decoder = Plan.load("snapgen_v_decoder")
    keys = dict.fromkeys([*plan.keys("fp32", ends=True), *decoder.keys("fp32")])
    rows = Table(small_header(), [small_record(key, 1.0) for key in keys])
    costs = CostModel(plan, rows)
    plain = video_time(costs, rows, 100.0, 4)
    decoder.save(tmp_path / "plan.json")
    (tmp_path / "config.json").write_text(
        '{"arrangement": ' + str(decoder.baseline.to_json()).replace("'", '"') + "}", "utf-8"
    )
    found = with_decoder(plain, costs, rows, tmp_path)
    assert found.decoder_ms == pytest.approx(1 + 120 + 3 + 3 * 120) and found.network_ms == 400.0
    assert plain.decoder_ms == space.decoder_calls()
    with pytest.raises(TableError, match="holds no searched decoder"):
        with_decoder(plain, costs, rows, tmp_path / "nowhere")
    Plan.load("tiny_decoder").save(tmp_path / "plan.json")
    with pytest.raises(TableError, match="is costed at 17x96x96, but snapgen_v makes 120x512x512"):
        with_decoder(plain, costs, rows, tmp_path)
