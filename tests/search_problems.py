"""A search problem with made-up costs and a known quality, for tests: no torch, no measurement, microseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from latency_tables.budget import Budget
from latency_tables.cost import CostModel
from latency_tables.header import Header
from latency_tables.record import Record
from latency_tables.table import Table
from nas.search.problem import Problem
from search_spaces.arrangement import Arrangement
from search_spaces.planning import load_plan
from search_spaces.space import Space


def tiny_problem(
    budget: Budget | None = None,
    seed: int = 0,
    correction: Mapping[str, object] | None = None,
    space: Space | None = None,
) -> Problem:
    space = space or Space.load("tiny")
    plan = load_plan(space)
    rng = np.random.default_rng(seed)
    rows = []
    for workload in plan.workloads:
        slow = 40.0 if workload.startswith("backbone") else float(rng.uniform(1, 30))
        key = f"{workload}@fp32"
        rows.append(
            Record(
                key,
                "plain",
                precision="fp32",
                latency_ms_median=slow,
                weights_mb=0.1,
                activation_peak_mb=15.0 if slow == 40.0 else slow,
            )
        )
    header = Header(device="made_up", runtime="made_up", precision="fp32", correction=correction)
    table = Table(header, rows)
    return Problem(space, CostModel(plan, table), budget or Budget())


@dataclass(frozen=True)
class Scored:
    loss: float
    stderr: float = 0.001
    parts: Mapping[str, float] = field(default_factory=dict)


class KnownQuality:
    """Additive in the layers, with less to gain from the second layer of a position; counts how often it is asked."""

    def __init__(self, problem: Problem, seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        self.gain = {
            (position.name, variant): float(rng.uniform(0, 0.1))
            for position in problem.space.positions
            for variant in position.variants
        }
        self.asked: list[str] = []

    def loss(self, arrangement: Arrangement) -> float:
        total = 1.0
        for name, variants in arrangement.layers:
            for depth, variant in enumerate(variants):
                total -= self.gain[name, variant] * 0.5**depth
        return total

    def __call__(self, arrangement: Arrangement) -> Scored:
        self.asked.append(arrangement.key)
        return Scored(self.loss(arrangement))
