"""What a transfer learns from few rows: what one row tells of its like, which rows to ask for, and at any size."""

from __future__ import annotations

import itertools

import numpy as np

from latency_tables import Header, Record, Table
from latency_tables.transfer import measure_first, transfer

BLOCKS = ("Conv1D", "Conv3D", "SelfAttention1D", "SelfAttention3D")
SHAPES = ((16, 32), (32, 24), (64, 12))


def device(name: str, factors: dict[tuple[str, int], float], variants: int = 2, noise: float = 0.0) -> Table:
    """Every block at every shape in variants of about the same cost; ``factors`` of a block at a shape's channels."""
    rng = np.random.default_rng(len(name))
    rows = []
    for (index, block), (channels, side) in itertools.product(enumerate(BLOCKS), SHAPES):
        for variant in range(variants):
            ms = (1 + index) * channels * side * side / 5e3 * factors.get((block, channels), 1.0)
            rows.append(
                Record(
                    f"{block}(heads={variant})/c{channels}/t8/{side}x{side}/b1@fp32",
                    "plain",
                    block=block,
                    channels=channels,
                    frames=8,
                    height=side,
                    width=side,
                    batch=1,
                    latency_ms_median=ms * (1 + 0.02 * variant) * float(np.exp(noise * rng.standard_normal())),
                )
            )
    return Table(Header(name, "onnxruntime", precision="fp32"), rows)


FACTORS = {
    (block, channels): 1.0 + 0.35 * i for i, (block, (channels, _)) in enumerate(itertools.product(BLOCKS, SHAPES))
}
OLD, TRUTH = device("old", {}), device("new", FACTORS, noise=0.01)


def test_a_row_tells_most_of_its_own_block_at_its_own_shape() -> None:
    known = [row for row in TRUTH if "heads=0" in row.key]
    found = transfer(OLD, Table(TRUTH.header, known))
    truth = np.array([TRUTH.get(key).latency_ms_median for key in found.predicted])  # type: ignore[union-attr]
    told = np.array([found.table.get(key).latency_ms_median for key in found.predicted])  # type: ignore[union-attr]
    base = np.array([OLD.get(key).latency_ms_median for key in found.predicted])  # type: ignore[union-attr]
    constant = base * np.median([row.latency_ms_median / OLD.get(row.key).latency_ms_median for row in known])  # type: ignore[union-attr]
    assert np.abs(np.log(told / truth)).mean() < 0.25 * np.abs(np.log(constant / truth)).mean()


def test_one_of_each_kind_is_asked_for_before_a_second() -> None:
    asked = measure_first(OLD, Table(TRUTH.header), len(BLOCKS) * len(SHAPES))
    cells = [(TRUTH.get(key).block, TRUTH.get(key).channels) for key in asked]  # type: ignore[union-attr]
    assert len(set(cells)) >= 11


def test_rows_that_are_asked_for_beat_random_ones() -> None:
    def off(known: list[str]) -> float:
        found = transfer(OLD, Table(TRUTH.header, [TRUTH.get(key) for key in known]))  # type: ignore[misc]
        pairs = [(found.table.get(key), TRUTH.get(key)) for key in found.predicted]
        return float(np.mean([abs(np.log(a.latency_ms_median / b.latency_ms_median)) for a, b in pairs]))  # type: ignore[union-attr]

    asked = list(measure_first(OLD, Table(TRUTH.header), 12))
    rng = np.random.default_rng(0)
    random = [off([str(key) for key in rng.choice(TRUTH.keys, 12, replace=False)]) for _ in range(10)]
    assert off(asked) < 0.5 * float(np.mean(random))


def test_a_table_of_thousands_of_rows_is_transferred() -> None:
    source = device("old", {}, variants=150)
    target = Table(TRUTH.header, [TRUTH.get(key) for key in TRUTH.keys[:12]])  # type: ignore[misc]
    found = transfer(source, target, 3)
    assert len(found.table) == len(source) == 1800 and len(found.next) == 3
