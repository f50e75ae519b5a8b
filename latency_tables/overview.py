"""What a whole space costs on a device: its cheapest and dearest, its distribution, and what fits a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from latency_tables.budget import Budget, Infeasible, nearest
from latency_tables.cost import CostModel
from latency_tables.distribution import PERCENTILES, Share, distributions, feasible_share
from latency_tables.optimum import extremes, marginal

UNITS = {"latency_ms": "ms", "peak_mb": "MB", "parameters": "parameters"}


@dataclass(frozen=True)
class Overview:
    """A space on a device. Every answer is exact, or stands with its interval.

    Attributes:
        extremes: column -> ``{"min": {"value", "arrangement"}, "max": ...}``.
        percentiles: column -> percent -> (low, high) of the cost that so many arrangements stay at or under: the ends
            of a 95% interval where arrangements were drawn.
        draws: how many were drawn for the percentiles; zero where all were costed.
        share: which part of the space meets the budget; ``held``: with the margin kept. ``None`` without a budget.
        infeasible: why nothing meets the budget with the margin kept, if nothing does.
        choices: what each single layer costs more than what the baseline has there: rows of ``marginal``, by latency.
    """

    space: str
    device: str
    runtime: str
    source: str
    audit: str
    size: int
    extremes: dict[str, dict[str, Any]]
    percentiles: dict[str, dict[int, tuple[float, float]]]
    draws: int
    budget: dict[str, float]
    share: Share | None
    held: Share | None
    infeasible: Infeasible | None
    choices: list[dict[str, Any]]


def overview(model: CostModel, budget: Budget) -> Overview:
    """Cheapest and dearest, percentiles, the share within a budget, and the cost of each choice by itself.

    Raises:
        TableError: if the budget limits memory and the table does not know it.
    """
    found: dict[str, dict[str, Any]] = {}
    for column, ends in extremes(model).items():
        found[column] = {
            sense: {
                "value": float(getattr(model.cost(indices[None]), column)[0]),
                "arrangement": {name: labels for name, labels in model.decode(indices).items() if labels},
            }
            for sense, indices in ends.items()
            if indices is not None
        }
    spreads = distributions(model)
    percentiles = {name: {percent: spreads[name].percentile(percent) for percent in PERCENTILES} for name in found}
    share = held = infeasible = None
    if budget.given:
        share = feasible_share(model, budget)
        within = budget.held(model.audit.margin)
        infeasible = nearest(model, within)
        # Where the exact solver finds none, draws that found none would only say "hardly any".
        held = Share(0.0, 0.0, model.size) if infeasible else feasible_share(model, within)
    baseline = model.encode(model.plan.baseline.labels())
    single = [row for row in marginal(model, baseline) if len(row["layers"]) == 1]  # type: ignore[arg-type]
    return Overview(
        model.plan.space,
        model.header.device,
        model.header.runtime,
        model.source,
        model.audit.sentence,
        model.size,
        found,
        percentiles,
        next(iter(spreads.values())).draws,
        budget.given,
        share,
        held,
        infeasible,
        sorted(single, key=lambda row: (row["position"], row["latency_ms"])),
    )


def render(found: Overview) -> str:
    """The overview as text for a terminal."""
    lines = [
        f"{found.space} on {found.device}/{found.runtime}, {found.source}: {found.size:,} arrangements",
        found.audit,
    ]
    shown = (1, 25, 50, 75, 99)
    lines += ["", f"{'':<12}" + "".join(f"{head:>14}" for head in ("cheapest", *(f"{p}%" for p in shown), "dearest"))]
    for column, ends in found.extremes.items():
        middle = [sum(found.percentiles[column][p]) / 2 for p in shown]
        values = [ends["min"]["value"], *middle, ends["max"]["value"]]
        digits = 0 if column == "parameters" else 2
        lines.append(f"{column:<12}" + "".join(f"{value:>14,.{digits}f}" for value in values))
    if found.draws:
        lines.append(f"percentiles of {found.draws:,} arrangements drawn; cheapest and dearest of all")
    lines += ["", f"{'beside the baseline':<44} {'ms':>10} {'peak MB':>9} {'parameters':>11}"]
    for row in found.choices:
        label = f"{row['position']:<10} {' + '.join(row['layers'])}"
        lines.append(f"{label:<44} {row['latency_ms']:>10.3f} {row['peak_mb']:>9.2f} {row['parameters']:>11,}")
    if found.share is not None and found.held is not None:
        limits = ", ".join(f"{name} {value:g}" for name, value in found.budget.items())
        lines += ["", f"within {limits}: {found.share.sentence}", f"with the margin kept: {found.held.sentence}"]
    if found.infeasible is not None:
        lines.append(found.infeasible.message)
    return "\n".join(lines)
