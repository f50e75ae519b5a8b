"""``nas export --graph``: the network for Google's Model Explorer, and what is known of its nodes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from export_fixtures import SMALL
from torch import nn

from device_profiler.evaluator.check import check_package
from device_profiler.evaluator.package import Package
from latency_tables.lookup import load_table
from nas.errors import NasError
from nas.export import export_model
from nas.export.checks import Places
from nas.export.compress import compress
from nas.export.folder import put
from nas.export.graph import Drawn, Row, rows_of, values_of, write
from nas.export.network import NAMES, bound_at
from nas.model.pipeline import load_pipeline


@pytest.fixture(scope="module")
def drawn(exported_model: Path, exported: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The files of a graph of the small package, two of whose layers have a row."""
    unet = load_pipeline(exported_model).unet.eval()
    module, inputs = bound_at(unet, SMALL)
    package = Package(exported[0] / "unet.mlpackage")
    check = check_package(package, module, inputs, NAMES)
    layers = [f"temporal.{name}" for name, part in unet.network.temporal.named_modules() if name.count(".") == 1]
    rows = {"": Row(9.0, "CPU"), layers[0]: Row(1.5, "Neural Engine"), layers[1]: Row(0.25, "")}
    folder = tmp_path_factory.mktemp("graph") / "unet.graph"
    names = write(folder, "unet.mlpackage", [Drawn(package.function(), Places(module), check)], rows)
    assert sorted(names) == ["bytes.json", "error.json", "graph.json", "ms.json", "unit.json"]
    return {
        "layers": layers,
        "function": package.function(),
        **{n: json.loads((folder / n).read_text()) for n in names},
    }


def nodes_of(drawn: dict[str, Any]) -> dict[str, dict[str, Any]]:
    (graph,) = drawn["graph.json"]["graphs"]
    assert drawn["graph.json"]["label"] == "unet.mlpackage" and graph["id"] == "main"
    return {node["id"]: node for node in graph["nodes"]}


def test_every_operation_is_a_node_that_leads_to_the_output(drawn: dict[str, Any]) -> None:
    nodes = nodes_of(drawn)
    operations = {one.name for one in drawn["function"].operations}
    assert set(nodes) == {*NAMES, *operations, "output"}
    reached, waiting = set(), ["output"]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(edge["sourceNodeId"] for edge in nodes[name].get("incomingEdges", ()))
    assert reached == set(nodes), "no edge is missing"
    spaces = {node["namespace"] for node in nodes.values()}
    assert {space.partition("/")[0] for space in spaces} == {"", "unet", "temporal"}, "no group of a constant"
    assert any(space.startswith(drawn["layers"][0].replace(".", "/")) for space in spaces)


def test_the_milliseconds_of_a_group_are_its_row_s(drawn: dict[str, Any]) -> None:
    nodes, told = nodes_of(drawn), drawn["ms.json"]["main"]["results"]
    for layer, ms in zip(drawn["layers"], (1.5, 0.25), strict=False):
        prefix = layer.replace(".", "/")
        inside = [
            told[name]["value"] for name, node in nodes.items() if name in told and node["namespace"].startswith(prefix)
        ]
        assert inside == [ms]
    assert told["output"]["value"] == 9.0 and len(told) == 3
    units = drawn["unit.json"]["main"]["results"]
    assert {one["value"] for one in units.values()} == {"CPU", "Neural Engine"}
    assert all(one["bgColor"].startswith("#") for one in units.values())


def test_bytes_and_errors_are_the_program_s_own(drawn: dict[str, Any]) -> None:
    sizes, errors = (drawn[f"{name}.json"]["main"]["results"] for name in ("bytes", "error"))
    stored = sum(p.stat().st_size for p in drawn["function"].package.path.rglob("weight.bin"))
    convolution = next(one for one in drawn["function"].operations if one.kind == "conv")
    assert 0 < sizes[convolution.name]["value"] < stored
    assert errors[drawn["function"].outputs[0]]["value"] == pytest.approx(2e-3, abs=3e-3)
    assert drawn["error.json"]["main"]["gradient"][0]["stop"] == 0


def test_weights_in_fewer_bits_count_as_the_bytes_that_are_stored(tmp_path: Path) -> None:
    from device_profiler.lowering.coreml import lower

    module = nn.Conv2d(64, 64, 3).eval()
    lower(module, (torch.randn(1, 64, 4, 4),), ("x",), "plain", "fp16", tmp_path, check=False)
    plain, small = tmp_path / "model.mlpackage", tmp_path / "small.mlpackage"
    shutil.copytree(plain, small)
    compress(small, "int8")
    sizes = [
        next(
            size for name, size in values_of(Drawn(function, Places(module), None), {})["bytes"].items() if name in made
        )
        for function in (Package(path).function() for path in (plain, small))
        for made in [{one.name for one in function.operations if one.kind == "conv"}]
    ]
    weights = 64 * 64 * 9
    assert sizes[0] == 2 * weights + 2 * 64 + 2 * 64 * 2 * 2
    assert sizes[1] == pytest.approx(sizes[0] - weights, rel=0.01), "a byte less for each weight, and the scales"


def test_a_device_s_rows_are_those_that_its_prediction_adds_up(exported_model: Path) -> None:
    unet = load_pipeline(exported_model).unet
    rows = rows_of(unet, "amd_epyc_zen5", Path("nowhere"))
    layers = sum(len(variants) for _, variants in unet.arrangement.layers)
    table = load_table("amd_epyc_zen5", Path("nowhere"))
    assert len(rows) == layers + 1 and all(row.ms > 0 and row.unit == "" for row in rows.values())
    assert rows[""].ms in [record.latency_ms_median for record in table if record.block == "backbone"]


def test_an_export_writes_it_beside_the_package(exported_model: Path, tmp_path: Path) -> None:
    facts = export_model(exported_model, tmp_path / "c", shapes=[SMALL], parts=["network"], graph=True, check=False)
    assert facts["graph"] == ["graph.json", "bytes.json"], "no table and no check: neither ms nor errors"
    assert {file.name for file in (tmp_path / "c" / "unet.graph").iterdir()} == set(facts["graph"])
    with pytest.raises(NasError, match="--graph is of the network, which --parts leaves out"):
        export_model(exported_model, tmp_path / "d", parts=["text_encoder"], graph=True)


@pytest.mark.parametrize(("made", "stays"), [("text_encoder", True), ("unet", False)])
def test_a_graph_goes_with_the_package_that_it_is_of(made: str, stays: bool, tmp_path: Path) -> None:
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    for folder in (out / "unet.mlpackage", out / "unet.graph", partial / f"{made}.mlpackage"):
        folder.mkdir(parents=True)
    put(partial, out, {}, {})
    assert (out / "unet.graph").is_dir() == stays and (out / f"{made}.mlpackage").is_dir()
