"""The cost model against the definition in plain Python and numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from table_fixtures import plan_json, slow_costs, small_header, small_plan, small_record, small_table

from latency_tables import CostModel, Plan, Table, TableError
from latency_tables.audit import Audit
from search_spaces.errors import SpaceError


def test_costs_equal_the_slow_reference_on_random_arrangements():
    plan = small_plan(max_layers=3)
    table = small_table(plan, seed=3)
    model = CostModel(plan, table)
    indices = model.random(300, np.random.default_rng(1))
    costs = model.cost(indices)
    for i, row in enumerate(indices):
        latency, weights, peak, parameters = slow_costs(plan, table, model.decode(row))
        assert costs.latency_ms[i] == pytest.approx(latency, rel=1e-12)
        assert costs.weights_mb[i] == pytest.approx(weights, rel=1e-12)
        assert costs.peak_mb[i] == pytest.approx(peak, rel=1e-12)
        assert costs.parameters[i] == parameters
        assert costs.peak_mb[i] == costs.weights_mb[i] + costs.activation_peak_mb[i]


def test_costs_worked_out_by_hand():
    plan = small_plan(("down.1.0",), max_layers=2)
    conv = "Conv1D(kernel_size=3)"
    rows = [
        small_record("backbone:small/t8/48x48/b1@fp32", 5.0, weights_mb=0.4, activation_peak_mb=6.0),
        small_record(f"{conv}/c32/t8/24x24/b1@fp32", 1.5, weights_mb=0.02, activation_peak_mb=2.0),
        small_record("Conv3D(kernel_size=3)/c32/t8/24x24/b1@fp32", 4.0, weights_mb=0.2, activation_peak_mb=5.0),
        small_record("SelfAttention1D(heads=2)/c32/t8/24x24/b1@fp32", 2.0, weights_mb=0.03, activation_peak_mb=3.0),
    ]
    model = CostModel(plan, Table(small_header(), rows))
    # Two skips of 294,912 elements stay alive at down.1.0: 2 * 294912 * 4 bytes = 2.359296 MB.
    picks = [{}, {"down.1.0": (conv,)}, {"down.1.0": ("Conv3D(kernel_size=3)", conv)}]
    costs = model.cost(np.stack([model.encode(pick) for pick in picks]))
    np.testing.assert_allclose(costs.latency_ms, [5.0, 6.5, 10.5])
    np.testing.assert_allclose(costs.weights_mb, [0.4, 0.42, 0.62])
    np.testing.assert_allclose(costs.activation_peak_mb, [6.0, 6.0, 2.359296 + 5.0])
    np.testing.assert_allclose(costs.peak_mb, [6.4, 6.42, 0.62 + 7.359296])
    assert costs.parameters.tolist() == [100_000, 100_000 + 3 * 1024, 100_000 + 30 * 1024]
    backbone, place = model.breakdown(model.encode(picks[2]))
    assert backbone["position"] == "backbone" and backbone["point_peak_mb"] == 6.0 and not backbone["is_peak"]
    assert place["layers"] == picks[2]["down.1.0"] and place["latency_ms"] == 5.5 and place["is_peak"]
    assert place["live_mb"] == pytest.approx(2.359296) and place["point_peak_mb"] == pytest.approx(7.359296)


def test_breakdown_adds_up_to_the_cost():
    model = CostModel(small_plan(), small_table())
    indices = model.random(1, np.random.default_rng(2))[0]
    rows, costs = model.breakdown(indices), model.cost(indices[None])
    for column in ("latency_ms", "weights_mb", "parameters"):
        assert sum(row[column] for row in rows) == pytest.approx(getattr(costs, column)[0])
    assert max(row["point_peak_mb"] for row in rows) == pytest.approx(costs.activation_peak_mb[0])
    json.dumps(rows)


def test_options_stand_in_product_order_with_the_empty_one_first():
    model = CostModel(small_plan(("down.0.0",), max_layers=2), small_table(small_plan(("down.0.0",))))
    a, b, c = (layer.label for layer in model.plan.positions[0].layers)
    pairs = [(x, y) for x in (a, b, c) for y in (a, b, c)]
    assert model.options[0] == ((), (a,), (b,), (c,), *pairs)
    assert model.size == 13


def test_encode_and_decode_are_inverse():
    model = CostModel(small_plan(), small_table())
    for row in model.random(50, np.random.default_rng(3)):
        np.testing.assert_array_equal(model.encode(model.decode(row)), row)
    with pytest.raises(TableError, match="no position mid.0"):
        model.encode({"mid.0": ()})
    with pytest.raises(TableError, match="SelfAttention3D is not offered there; 0 to 2 layers of Conv1D"):
        model.encode({"down.0.0": ("SelfAttention3D",)})


def test_equal_sets_of_layers_cost_exactly_the_same():
    model = CostModel(small_plan(), small_table())
    a, b, c = (layer.label for layer in model.plan.positions[0].layers)
    first, second = (model.cost(model.encode({"down.0.0": pick})[None]) for pick in ((a, b), (b, a)))
    assert dataclasses.astuple(first) == dataclasses.astuple(second)


def test_a_failed_row_is_infinite_only_where_it_is_chosen():
    table = small_table()
    failed = "Conv3D(kernel_size=3)/c16/t8/48x48/b1@fp32"
    table.remove([table.rows(failed)[0].primary_key])
    table.append(
        [small_record(failed, None, status="oom", reason="4 GB over", activation_peak_mb=None, weights_mb=None)]
    )
    model = CostModel(small_plan(), table)
    picks = [{}, {"up.1.0": ("Conv3D(kernel_size=3)",)}, {"down.1.0": ("Conv3D(kernel_size=3)",)}]
    costs = model.cost(np.stack([model.encode(pick) for pick in picks]))
    assert np.isinf(costs.latency_ms).tolist() == [False, True, False]
    assert np.isinf(costs.peak_mb).tolist() == [False, True, False]


def test_memory_that_no_row_knows_stays_unknown():
    table = small_table()
    blind = table.rows("Conv1D(kernel_size=3)/c16/t8/48x48/b1@fp32")[0]
    table.append([dataclasses.replace(blind, activation_peak_mb=None)])
    model = CostModel(small_plan(), table)
    assert model.unknown_memory == (blind.key,)
    costs = model.cost(np.stack([model.encode({}), model.encode({"down.0.0": ("Conv1D(kernel_size=3)",)})]))
    assert np.isnan(costs.peak_mb).tolist() == [False, True] and np.isfinite(costs.latency_ms).all()


def test_half_precision_halves_the_skips_and_the_precision_comes_from_the_rows():
    plan = small_plan()
    half = small_table(plan, header=small_header(precision="fp16"))
    assert CostModel(plan, half).live_mb[1] == pytest.approx(2.359296 / 2)
    unnamed = Table(small_header(precision=""), half.records)
    assert CostModel(plan, unnamed).precision == "fp16"
    with pytest.raises(TableError, match="rows of one precision"):
        CostModel(plan, Table(small_header(precision="")))


def test_missing_rows_are_named_with_the_command_that_measures_them():
    table = small_table()
    table.remove([row.primary_key for row in table.rows("Conv1D(kernel_size=3)/c32/t8/24x24/b1@fp32")])
    with pytest.raises(
        TableError, match=r"1 of 7 .*Conv1D\(kernel_size=3\)/c32.*`nas profile small --device host_cpu`"
    ):
        CostModel(small_plan(), table)


def test_a_failed_backbone_is_an_error():
    table = small_table()
    table.append([small_record("backbone:small/t8/48x48/b1@fp32", None, status="timeout", reason="600 s")])
    with pytest.raises(TableError, match="backbone's row is timeout"):
        CostModel(small_plan(), table)


def test_estimated_rows_never_mix_silently():
    table = small_table()
    first = table.records[0]
    assert CostModel(small_plan(), table).source == "measured"
    assert CostModel(small_plan(), small_table(source="estimated")).source == "estimated"
    table.append([dataclasses.replace(first, source="estimated")])
    with pytest.raises(TableError, match="do not mix silently"):
        CostModel(small_plan(), table)
    model = CostModel(small_plan(), table, allow_mixed=True)
    assert model.source == "mixed: 6 measured, 1 estimated" and model.audit.state == "estimated"


def test_rows_in_context_are_preferred_where_they_cover_every_block():
    table = small_table()
    blocks = [row for row in table if not row.key.startswith("backbone")]
    inside = [
        dataclasses.replace(row, method="in_context", latency_ms_median=row.latency_ms_median * 2) for row in blocks
    ]
    table.append(inside[:-1])
    assert CostModel(small_plan(), table).method == "alone"
    table.append(inside[-1:])
    model, alone = CostModel(small_plan(), table), CostModel(small_plan(), table, method="alone")
    indices = model.random(5, np.random.default_rng(0))
    assert model.method == "in_context"
    np.testing.assert_allclose(model.cost(indices).latency_ms - 5.0, 2 * (alone.cost(indices).latency_ms - 5.0))
    with pytest.raises(TableError, match="6 of 7 workloads have no row"):
        CostModel(small_plan(), table, method="slope")


def test_any_additive_column_is_summed_like_latency():
    table = small_table()
    table.append([dataclasses.replace(row, extra=(("energy_mj", row.latency_ms_median * 3),)) for row in table])
    model = CostModel(small_plan(), table)
    indices = model.random(20, np.random.default_rng(0))
    np.testing.assert_allclose(model.column("energy_mj", indices), 3 * model.cost(indices).latency_ms, rtol=1e-5)
    with pytest.raises(TableError, match="no row has a column 'joules'"):
        model.column("joules", indices)


def test_a_correction_is_applied_unless_left_out_or_of_another_space():
    fit = {"form": "scale + offset + per layer", "offset_ms": 0.5, "scale": 1.1, "per_layer_ms": 0.1, "networks": 20}
    fit |= {"mape": 0.01, "worst": 0.03, "interval": 0.02, "bare_mape": 0.04}
    plan, table = small_plan(), small_table(header=small_header(correction={"space": "small", **fit}))
    plain, corrected = CostModel(plan, table, correct=False), CostModel(plan, table)
    indices = plain.random(10, np.random.default_rng(0))
    layers = np.array([sum(len(labels) for labels in plain.decode(row).values()) for row in indices])
    expected = 0.5 + 1.1 * plain.cost(indices).latency_ms + 0.1 * layers
    np.testing.assert_allclose(corrected.cost(indices).latency_ms, expected)
    assert corrected.audit.corrected and corrected.audit.interval(98.0 * 1.02) == pytest.approx((98.0, 102.0))
    assert plain.audit.state == "unknown"
    other = small_table(header=small_header(correction={"space": "another", **fit}))
    np.testing.assert_allclose(CostModel(plan, other).cost(indices).latency_ms, plain.cost(indices).latency_ms)
    with pytest.raises(TableError, match="has no correction"):
        CostModel(plan, small_table(), correct=True)
    with pytest.raises(TableError, match="correction.form is None"):
        CostModel(plan, small_table(header=small_header(correction={"scale": 1.0})))


def test_the_margin_is_what_a_low_prediction_is_exceeded_by():
    evidence = {"space": "small", "mape": 0.04, "worst": 0.2, "interval": 0.1, "networks": 20}
    audit = Audit.of(small_header(additivity=evidence))
    assert audit.margin == pytest.approx(0.25)  # 80 predicted, 100 measured
    assert audit.interval(90.0) == pytest.approx((90.0 / 1.1, 100.0))


def test_evidence_of_another_space_says_nothing():
    evidence = {"space": "another", "mape": 0.01, "worst": 0.02, "networks": 20}
    table = small_table(header=small_header(additivity=evidence))
    assert CostModel(small_plan(), table).audit.state == "unknown"


def test_evidence_of_sums_of_other_rows_says_nothing():
    rows = CostModel(small_plan(), small_table()).rows_digest
    evidence = {"space": "small", "mape": 0.01, "worst": 0.02, "networks": 20, "rows": rows}
    table = small_table(header=small_header(additivity=evidence))
    assert CostModel(small_plan(), table).audit.state == "trusted"
    quicker = dataclasses.replace(table.records[1], lowering="taps", latency_ms_median=0.001)
    assert CostModel(small_plan(), table.append(quicker)).audit.state == "unknown"


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 3), int), np.zeros(4, int), np.zeros((1, 4)), [[0, 0, 0, 13]], [[0, -1, 0, 0]]]
)
def test_indices_that_are_no_arrangement_are_refused(bad):
    with pytest.raises(TableError, match="use encode"):
        CostModel(small_plan(), small_table()).cost(bad)


def test_no_arrangements_have_no_costs():
    model = CostModel(small_plan(), small_table())
    assert len(model.cost(np.zeros((0, 4), dtype=int))) == 0


def test_a_plan_is_checked_field_by_field(tmp_path):
    good = plan_json()
    for change, words in [
        ({"schema": 2}, "schema 2, known here is 1"),
        ({"positions": 3}, "positions: must be a list"),
        ({"points": []}, "has no point of execution"),
        ({"backbone": {**good["backbone"], "parameters": -1}}, "backbone.parameters: must be a whole number"),
        ({"positions": [{**good["positions"][0], "layers": [{"variant": 1}]}]}, r"positions\[0\].layers\[0\]"),
        (
            {"positions": [{**good["positions"][0], "max_layers": 10**12}]},
            "max_layers: must be a whole number",
        ),
        ({"points": [{"name": "a", "kind": "b", "skips": [["x", "y"]]}]}, r"points\[0\].skips\[0\]"),
    ]:
        with pytest.raises(SpaceError, match=words):
            Plan.from_json({**good, **change})
    path = tmp_path / "x.plan.json"
    path.write_text(json.dumps(good))
    assert Plan.load(path) == small_plan() and Plan.load(path).size == 13**4
    path.write_text("{")
    with pytest.raises(SpaceError, match="is no JSON"):
        Plan.load(path)
    with pytest.raises(SpaceError, match="no plan of a space 'nowhere'; known: .*tiny"):
        Plan.load("nowhere")


def test_the_committed_plans_load_by_name():
    assert Plan.load("tiny").keys("fp32")[0].endswith("@fp32")
    assert len(Plan.load("snapgen_v").positions) == 9
