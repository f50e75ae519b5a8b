"""The search problem: one choice a position, its exact cost from the table, its limits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution, IntDistribution

from latency_tables.budget import Budget
from latency_tables.cost import CostModel, Costs
from latency_tables.optimum import limits_of, optimum
from nas.errors import NasError
from search_spaces.arrangement import Arrangement
from search_spaces.space import Space
from search_spaces.variant import Variant
from search_spaces.words import Words

Indices = NDArray[np.int64]

NO_LAYER = "none"
MES = "mes"
OBJECTIVES = ("latency_ms", "peak_mb", "parameters", MES)  # what may be minimised beside the loss
MES_SCORE, MES_POWER, MES_UNITS = 100.0, 0.5, {"parameters": 10e6, "latency_ms": 1.0}


@dataclass(frozen=True)
class Problem:
    """Minimise the quality loss and the latency of an arrangement under a budget.

    A choice is an index into ``space.options(position)`` for each position, so every arrangement has exactly one
    encoding: nothing has to be made canonical afterwards, and no two trials can be the same under two names.

    Args:
        space: what may be chosen.
        costs: the cost model over the device's table; its options are the space's, in the same order.
        budget: limits in ms, MB and parameters.
        objectives: of ``OBJECTIVES``, what is minimised beside the loss.
        held: position -> of each slot, the variants that can be scored; all where not given.

    Raises:
        NasError: if the cost model describes other positions or options than the space, or an objective is unknown.
    """

    space: Space
    costs: CostModel
    budget: Budget
    objectives: tuple[str, ...] = ("latency_ms",)
    held: Mapping[str, Sequence[Collection[Variant]]] | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.objectives if name not in OBJECTIVES]
        if unknown or not self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise NasError(
                f"search.objectives must be one or more of {', '.join(OBJECTIVES)}, each once, but is "
                f"{', '.join(self.objectives) or 'empty'}"
            )
        if self.costs.unknown_memory and "peak_mb" in self.objectives:
            raise NasError(
                f"search.objectives: the table does not know the memory of {self.costs.unknown_memory[0]}; measure it, "
                "or leave peak_mb out"
            )
        names = tuple(position.name for position in self.space.positions)
        if tuple(self.costs.positions) != names:
            raise NasError(
                f"the plan's positions {', '.join(self.costs.positions)} are not those of the space "
                f"{self.space.name} ({', '.join(names)}); write the plan again with python -m search_spaces.planning"
            )
        for name, planned in zip(names, self.costs.options, strict=True):
            offered = tuple(tuple(v.label for v in option) for option in self.space.options(name))
            if planned != offered:
                raise NasError(
                    f"{name}: the plan's {len(planned)} options are not the space's {len(offered)}; "
                    "write the plan again with python -m search_spaces.planning"
                )

    @cached_property
    def positions(self) -> tuple[str, ...]:
        return tuple(position.name for position in self.space.positions)

    @cached_property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Position -> the readable name of each option, ``none`` first."""
        return {
            name: tuple(" + ".join(v.label for v in option) or NO_LAYER for option in self.space.options(name))
            for name in self.positions
        }

    @cached_property
    def distributions(self) -> dict[str, IntDistribution]:
        """Optuna's search space: the index of an option for each position; a study keeps the labels once."""
        return {name: IntDistribution(0, len(labels) - 1) for name, labels in self.labels.items()}

    @cached_property
    def categorical(self) -> dict[str, CategoricalDistribution]:
        """The same indices for a sampler that must not take them for an order."""
        return {name: CategoricalDistribution(tuple(range(len(labels)))) for name, labels in self.labels.items()}

    @cached_property
    def num_options(self) -> Indices:
        return np.array([len(self.labels[name]) for name in self.positions])

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many options each position has."""
        return tuple(len(self.labels[name]) for name in self.positions)

    @cached_property
    def _label_index(self) -> dict[str, dict[str, int]]:
        return {name: {label: i for i, label in enumerate(self.labels[name])} for name in self.positions}

    def params(self, indices: Sequence[int] | Indices) -> dict[str, int]:
        """Optuna parameters of a choice of shape (P,)."""
        return {name: int(i) for name, i in zip(self.positions, indices, strict=True)}

    def indices(self, params: Mapping[str, int]) -> Indices:
        """The choice, shape (P,), of a trial's parameters."""
        return np.array([params[name] for name in self.positions], dtype=np.int64)

    def arrangement(self, indices: Sequence[int] | Indices) -> Arrangement:
        layers = tuple((n, self.space.options(n)[int(i)]) for n, i in zip(self.positions, indices, strict=True))
        return Arrangement(space=self.space.name, layers=layers)

    def named(self, indices: Sequence[int] | Indices) -> str:
        """``down.0.0: Conv1D(kernel_size=3); up.1.0: ...``, or that there are none."""
        labels = [(name, self.labels[name][int(i)]) for name, i in zip(self.positions, indices, strict=True)]
        return "; ".join(f"{name}: {label}" for name, label in labels if label != NO_LAYER) or self.words.none

    def indices_of(self, arrangement: Arrangement) -> Indices:
        self.space.check(arrangement)
        found = {name: " + ".join(v.label for v in vs) or NO_LAYER for name, vs in arrangement.layers}
        return np.array([self._label_index[name][found[name]] for name in self.positions])

    def cost(self, indices: Indices) -> Costs:
        """Costs of (N, P) choices; infinite where the table has no number for a chosen layer."""
        return self.costs.cost(np.atleast_2d(indices))

    def feasible(self, indices: Indices) -> NDArray[np.bool_]:
        return self.budget.feasible(self.cost(indices))

    def violations(self, indices: Indices) -> dict[str, NDArray[np.float64]]:
        """Limit -> value / limit - 1 of (N, P) choices: zero or less is kept, as Optuna's constraints read it."""
        return self.budget.violations(self.cost(indices))

    @cached_property
    def words(self) -> Words:
        """What people are told stands at the positions."""
        return Words.of(self.costs.plan)

    @cached_property
    def baseline(self) -> Indices:
        """The choice, shape (P,), that the space compares with."""
        return self.indices_of(self.space.baseline())

    @cached_property
    def within_budget(self) -> Indices | None:
        """Some arrangement that meets every limit, found exactly; ``None`` if there is none."""
        return optimum(self.costs, "latency_ms", limits_of(self.budget.bounds), enough=np.inf)

    def objective_costs(self, indices: Indices) -> NDArray[np.float64]:
        """What is minimised beside the loss, shape (N, objectives), of (N, P) choices."""
        costs = self.cost(indices)
        columns = [100.0 / mes(costs) if name == MES else getattr(costs, name) for name in self.objectives]
        return np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)

    def excess(self, indices: Indices) -> NDArray[np.float64]:
        """Sum of the broken limits' shares over (N, P) choices; zero where feasible, infinite where nothing runs."""
        costs = self.cost(indices)
        broken = np.where(np.isfinite(costs.latency_ms), 0.0, np.inf)
        for share in self.budget.violations(costs).values():
            broken = broken + np.maximum(share, 0)
        return np.where(self.budget.feasible(costs), 0.0, broken)

    def neighbours(self, indices: Indices) -> Indices:
        """All choices that differ from ``indices`` (P,) at exactly one position."""
        rows = []
        for p, count in enumerate(self.num_options):
            others = np.delete(np.arange(count), indices[p])
            block = np.repeat(indices[None, :], len(others), axis=0)
            block[:, p] = others
            rows.append(block)
        return np.concatenate(rows)

    def hand_made(self) -> dict[str, Indices]:
        """The designs people use without a search, where the space has them: name -> choice."""
        designs: dict[str, tuple[str, ...]] = {
            self.words.none: (),
            "all SelfAttention1D": ("SelfAttention1D",),  # the motion modules of AnimateDiff
            "all Conv1D": ("Conv1D",),
            "all Conv3D": ("Conv3D",),
            "all Conv1D + SelfAttention1D": ("Conv1D", "SelfAttention1D"),  # ModelScope-style
        }
        found = {} if self.words.bare else {"baseline": self.baseline}
        for name, blocks in designs.items():
            choice = [self._first_option(position, blocks) for position in self.positions]
            if all(i is not None for i in choice) and self.scorable(np.array(choice)):
                found[name] = np.array(choice)
        return found

    def scorable(self, indices: Indices) -> bool:
        """Whether all layers of a choice are ``held``."""
        layers = self.arrangement(indices).layers
        return self.held is None or all(v in self.held[n][slot] for n, vs in layers for slot, v in enumerate(vs))

    def _first_option(self, position: str, blocks: tuple[str, ...]) -> int | None:
        for i, option in enumerate(self.space.options(position)):
            if tuple(v.block for v in option) == blocks:
                return i
        return None


def mes(costs: Costs) -> NDArray[np.float64]:
    """The Mobile Efficiency Score of N arrangements; higher is better, and 100 is 10M parameters in 1 ms.

    ``100 * (parameters / 10M) ** -0.5 * (latency / 1 ms) ** -0.5``: one number for size and speed. As an objective it
    is minimised as ``100 / MES``.

    Source: EfficientFormerV2 (Li et al., arXiv 2212.08059, section 3.3), its units and exponents.
    """
    score = np.full(len(costs), MES_SCORE)
    for name, unit in MES_UNITS.items():
        score *= (np.asarray(getattr(costs, name), dtype=np.float64) / unit) ** -MES_POWER
    return score
