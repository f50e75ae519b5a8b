"""Design ladders: one change at a time, each against the one before; and SnapGen's published size at the end of its."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from table_fixtures import small_table
from typer.testing import CliRunner

from latency_tables import CostModel, Plan
from nas.cli.options import app
from nas.errors import NasError
from nas.report.ladder import ladder_svg
from nas.search.ladder import designs, measure, read_ladder
from search_spaces.planning import load_plan
from search_spaces.space import Space

STEP = "name: own\nsteps:\n  - name: first\n    changes:\n      - {change}\n"


def own(folder: Path, change: str) -> str:
    path = folder / "own.yaml"
    path.write_text(STEP.replace("{change}", change))
    return str(path)


def test_the_shipped_ladder_ends_at_the_published_size() -> None:
    """372M is what SnapGen's paper says; this is the count of the design as far as it is published."""
    space = Space.load("snapgen")
    plan = load_plan(space)
    last = designs(read_ladder("snapgen"), space)[-1][1]
    assert plan.parameters(last) == 372_165_648
    blocks = {variant.label for _, layers in last.layers for variant in layers}
    assert blocks == {
        "SeparableConv(expansion=2)",
        "TextTransformer(gated=1,head_width=64,kv_heads=1,ratio=3,self_attention=0)",
        "TextTransformer(gated=1,head_width=64,kv_heads=1,ratio=3,self_attention=1)",
    }


def test_each_rung_is_told_against_the_one_before() -> None:
    space = Space.load("tiny_image")
    priced = Plan.load("tiny_image")
    measured = measure(read_ladder("snapgen"), space, CostModel(priced, small_table(priced)), "nowhere")
    plan = load_plan(space)
    assert [rung.step for rung in measured.rungs][0] == "baseline" and len(measured.rungs) == 6
    assert [rung.parameters for rung in measured.rungs] == [
        plan.parameters(design) for _, design in designs(read_ladder("snapgen"), space)
    ]
    first, second = measured.rungs[:2]
    share = f"{second.parameters / first.parameters - 1:+.1%}"
    lines = measured.render().splitlines()
    assert share in lines[4] and "self-attention at the lowest" in lines[4] and "baseline" in lines[3]
    drawn = ElementTree.fromstring(ladder_svg(measured))
    assert "one key-value head" in "".join(drawn.itertext())


@pytest.mark.parametrize(
    "change, message",
    [
        ("{block: FullConv, to: FullConv}", "step 'first' changes nothing in tiny_image: no FullConv at *"),
        ('{at: ["up.9.*"], block: FullConv, to: SeparableConv(expansion=2)}', "changes nothing in tiny_image"),
        ("{block: FullConv, to: SeparableConv}", "SeparableConv names 2 variants there"),
        ("{block: FullConv, to: Conv9D}", "unknown block 'Conv9D'"),
        ("{block: TextTransformer, set: {ratios: 3}}", "unknown parameter 'ratios'. Did you mean 'ratio'?"),
        ("{block: TextTransformer, set: {kv_heads: 3}}", "kv_heads must divide the 4 heads"),
        ("{block: TextTransformer, set: {ratio: 9}}", "is not allowed here"),
        ("{block: FullConv}", "a change needs set or to"),
        ("{blok: FullConv, to: SeparableConv}", "blok"),
    ],
)
def test_a_wrong_step_is_one_line(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(NasError) as caught:
        designs(read_ladder(own(tmp_path, change)), Space.load("tiny_image"))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_ladder_that_does_not_exist_is_named() -> None:
    with pytest.raises(NasError, match=r"unknown ladder 'snapgem'. Did you mean 'snapgen'\?"):
        read_ladder("snapgem")


def test_options_of_a_search_are_refused_beside_a_ladder(tmp_path: Path) -> None:
    runner = CliRunner()
    for words, message in (
        (["tiny_image", "--ladder", "snapgen", "--latency-ms", "3"], "leave --latency-ms out"),
        (["tiny_image", "--ladder", "snapgen"], "needs --device"),
        (["tiny_image", "--ladder", "snapgen", "--device", "host_cpu", "--set", "search.margin=0"], "has no settings"),
        (["tiny_image", "--device", "host_cpu"], "belong to --ladder"),
    ):
        found = runner.invoke(app, ["search", *words])
        assert isinstance(found.exception, NasError) and message in str(found.exception), words
