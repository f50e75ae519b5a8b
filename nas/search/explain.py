"""Why this arrangement: what each position contributes, what more would buy, what a search was worth."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latency_tables.budget import Budget
from latency_tables.optimum import extremes
from nas.search.problem import Indices, Problem
from nas.search.studies import Evaluation
from nas.search.surrogate import Features, Posterior, exact_front
from search_spaces.arrangement import Arrangement

DRAWS = 32  # models drawn from the posterior, for every interval here
MORE_MS, MORE_MB = 50.0, 100.0
TRIED = 5  # arrangements of each kind that are scored to see what a looser limit would buy
Z = 1.645  # of a 90% interval

Floats = NDArray[np.float64]
Difference = Callable[[Arrangement, Arrangement], tuple[float, float]]


@dataclass(frozen=True)
class Contribution:
    """What a position's layers do for the chosen arrangement, beside those that the baseline has there.

    Attributes:
        layers: labels, joined.
        loss, loss_stderr: the supernet's loss with the baseline's in their place (as a rule none), less its loss with
            them, on the same clips and noise.
        modelled, modelled_sd: the same by the additive model of all evaluations.
        latency_ms, peak_mb, parameters: what they cost more, by the table.
    """

    position: str
    layers: str
    loss: float
    loss_stderr: float
    modelled: float
    modelled_sd: float
    latency_ms: float
    peak_mb: float
    parameters: int

    @property
    def told_from_nothing(self) -> bool:
        return abs(self.loss) > Z * self.loss_stderr


@dataclass(frozen=True)
class More:
    """What a looser limit would buy.

    Attributes:
        layers: the best of ``tried`` arrangements that need the looser limit, by the supernet; empty where none does.
        loss, loss_stderr: its loss less the chosen one's, on the same clips and noise.
        low, high: 90% interval over models of how the least loss within the limits would change; ``None`` where no
            model tells. A layer that was never evaluated is worth nothing to a model: that is why some are tried.
    """

    what: str
    layers: str
    loss: float
    loss_stderr: float
    tried: int
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Design:
    """A design made by hand, on the same axes; differences are its loss less the chosen one's."""

    name: str
    loss: float
    difference: float
    difference_stderr: float
    latency_ms: float
    peak_mb: float
    feasible: bool


@dataclass(frozen=True)
class Explanation:
    """Everything that ``nas search --explain`` says.

    Attributes:
        key, loss, latency_ms, peak_mb: the chosen arrangement.
        budget, held: limits as asked, and what predictions are held to.
        reachable: column -> least and most in the whole space, exactly.
        positions: what each position that differs from the baseline contributes, the most useful first.
        more: what looser limits would buy.
        designs: hand-made designs.
        regret, regret_high: how far the model thinks the chosen one is from the best within the budget, on average
            over models and at most in 90% of them; not a bound, since the model may be wrong. ``None`` where no model
            knows a best: its front runs along the latency, and limits on size may leave nothing of it.
        model_error: root mean square error of the model on evaluations it was not fitted on (five folds), beside the
            standard deviation of the losses; ``None`` for too few evaluations.
    """

    key: str
    loss: float
    latency_ms: float
    peak_mb: float
    budget: dict[str, float]
    held: dict[str, float]
    reachable: dict[str, tuple[float, float]]
    positions: tuple[Contribution, ...]
    more: tuple[More, ...]
    designs: tuple[Design, ...]
    regret: float | None
    regret_high: float | None
    model_error: float | None
    loss_spread: float
    evaluations: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def explain(problem: Problem, found: Sequence[Evaluation], chosen: Evaluation, difference: Difference) -> Explanation:
    """The reasons for a choice.

    Args:
        found: all evaluations of the study. chosen: one of them.
        difference: (a, b) -> mean and standard error of loss(a) - loss(b) on the supernet, on shared noise.
    """
    features = Features.of(problem)
    choices = np.array([e.choice for e in found], dtype=np.int64)
    losses = np.array([e.loss for e in found])
    posterior = Posterior.fit(features(choices), losses)
    rng = np.random.default_rng(0)
    models = [posterior.draw(rng) for _ in range(DRAWS)]
    bests = [_best(problem, features, w)[0] for w in models]
    known_bests = [best for best in bests if np.isfinite(best)]
    regrets = [max(0.0, chosen.loss - posterior.offset - posterior.unit * best) for best in known_bests]
    known = {e.arrangement.key: e for e in found}
    return Explanation(
        chosen.arrangement.key,
        chosen.loss,
        chosen.latency_ms,
        chosen.peak_mb,
        dict(problem.budget.given),
        dict(problem.budget.bounds),
        _reachable(problem),
        _contributions(problem, features, models, posterior.unit, chosen, difference),
        _more(problem, features, posterior, models, bests, chosen, choices, difference),
        tuple(_designs(problem, known, chosen, difference)),
        float(np.mean(regrets)) if regrets else None,
        float(np.quantile(regrets, 0.9)) if regrets else None,
        left_out_error(features, choices, losses),
        float(losses.std()),
        len(found),
    )


def left_out_error(features: Features, choices: Indices, losses: Floats, folds: int = 5) -> float | None:
    """Root mean square error of the additive model on evaluations that it was not fitted on; None for too few."""
    if len(losses) < 2 * folds:
        return None
    order = np.random.default_rng(0).permutation(len(losses))
    errors = np.empty(len(losses))
    for fold in range(folds):
        held = order[fold::folds]
        rest = np.setdiff1d(order, held)
        fitted = Posterior.fit(features(choices[rest]), losses[rest])
        errors[held] = fitted.predict(features(choices[held])) - losses[held]
    return float(np.sqrt(np.mean(errors**2)))


def _loss(features: Features, weights: Floats, choice: Indices) -> float:
    return float((features(choice[None]) @ weights)[0])


def _best(problem: Problem, features: Features, weights: Floats) -> tuple[float, Indices]:
    """The least modelled loss within the budget (in the model's units), and its choice."""
    front = exact_front(problem, features, weights)
    fits = np.flatnonzero(problem.feasible(front.choices))
    if not len(fits):  # limits on size alone, say, that the front along latency knows nothing of
        return np.inf, np.zeros(len(problem.positions), dtype=np.int64)
    values = features(front.choices[fits]) @ weights
    best = int(np.argmin(values))
    return float(values[best]), front.choices[fits[best]]


def _reachable(problem: Problem) -> dict[str, tuple[float, float]]:
    found = {}
    for column, ends in extremes(problem.costs).items():
        known = [end for end in (ends["min"], ends["max"]) if end is not None]
        values = [float(getattr(problem.cost(end), column)[0]) for end in known]
        found[column] = (min(values), max(values))
    return found


def _contributions(
    problem: Problem,
    features: Features,
    models: Sequence[Floats],
    unit: float,
    chosen: Evaluation,
    difference: Difference,
) -> tuple[Contribution, ...]:
    own = np.array(chosen.choice, dtype=np.int64)
    cost = problem.cost(own)
    found = []
    for place, name in enumerate(problem.positions):
        if own[place] == problem.baseline[place]:
            continue
        without = own.copy()
        without[place] = problem.baseline[place]
        loss, stderr = difference(problem.arrangement(without), chosen.arrangement)
        drawn = [unit * (_loss(features, w, without) - _loss(features, w, own)) for w in models]
        less = problem.cost(without)
        found.append(
            Contribution(
                name,
                problem.labels[name][own[place]],
                loss,
                stderr,
                float(np.mean(drawn)),
                float(np.std(drawn)),
                float(cost.latency_ms[0] - less.latency_ms[0]),
                float(cost.peak_mb[0] - less.peak_mb[0]),
                int(cost.parameters[0] - less.parameters[0]),
            )
        )
    return tuple(sorted(found, key=lambda entry: -entry.loss))


def _more(
    problem: Problem,
    features: Features,
    posterior: Posterior,
    models: Sequence[Floats],
    bests: Sequence[float],
    chosen: Evaluation,
    seen: Indices,
    difference: Difference,
) -> tuple[More, ...]:
    budget = problem.budget
    wider: dict[str, Budget] = {}
    if budget.latency_ms is not None:
        wider[f"{MORE_MS:g} ms more"] = replace(budget, latency_ms=budget.latency_ms + MORE_MS)
    if budget.memory_mb is not None:
        wider[f"{MORE_MB:g} MB more"] = replace(budget, memory_mb=budget.memory_mb + MORE_MB)
    if budget.latency_ms is not None and budget.memory_mb is not None:
        latency, memory = budget.latency_ms + MORE_MS, budget.memory_mb + MORE_MB
        wider["both"] = replace(budget, latency_ms=latency, memory_mb=memory)
    found = []
    for what, loosened in wider.items():
        other = replace(problem, budget=loosened)
        pairs = [(_best(other, features, w)[0], best) for w, best in zip(models, bests, strict=True)]
        changes = [posterior.unit * (wide - best) for wide, best in pairs if np.isfinite(wide) and np.isfinite(best)]
        low, high = (float(value) for value in np.quantile(changes, [0.05, 0.95])) if changes else (None, None)
        candidates = _candidates(problem, other, features, posterior, np.array(chosen.choice, dtype=np.int64), seen)
        candidates = [row for row in candidates if problem.scorable(row)]
        told = [(*difference(problem.arrangement(row), chosen.arrangement), row) for row in candidates]
        loss, stderr, row = min(told, key=lambda entry: entry[0], default=(0.0, 0.0, None))
        layers = "" if row is None else problem.named(row)
        found.append(More(what, layers, loss, stderr, len(told), low, high))
    return tuple(found)


def _candidates(
    problem: Problem, wider: Problem, features: Features, posterior: Posterior, chosen: Indices, seen: Indices
) -> list[Indices]:
    """Arrangements worth trying that fit the wider limits and not the present ones.

    The model's best; and the chosen one with one position changed: to choices that no evaluation had there, single
    layers first and the cheapest of them, and to those that the model likes best.
    """

    def is_new(rows: Indices) -> NDArray[np.bool_]:
        return wider.feasible(rows) & ~problem.feasible(rows)

    best = _best(wider, features, posterior.mean)[1]
    around = problem.neighbours(chosen)
    around = around[is_new(around)]
    places = (around != chosen).argmax(1)
    unseen = np.array([not np.any(seen[:, p] == row[p]) for p, row in zip(places, around, strict=True)], dtype=np.bool_)
    depth = [len(problem.space.options(problem.positions[p])[row[p]]) for p, row in zip(places, around, strict=True)]
    order = sorted(np.flatnonzero(unseen), key=lambda i: (depth[i], problem.cost(around[i]).latency_ms[0]))[:TRIED]
    if len(around):
        order += list(np.argsort(features(around) @ posterior.mean, kind="stable")[:TRIED])
    rows = [around[i] for i in dict.fromkeys(order)]
    return [best, *rows] if is_new(best[None])[0] else rows


def _designs(
    problem: Problem, known: dict[str, Evaluation], chosen: Evaluation, difference: Difference
) -> list[Design]:
    found = []
    for name, choice in problem.hand_made().items():
        evaluation = known.get(problem.arrangement(choice).key)
        if evaluation is None:
            continue
        same = evaluation.arrangement.key == chosen.arrangement.key
        mean, stderr = (0.0, 0.0) if same else difference(evaluation.arrangement, chosen.arrangement)
        costs = (evaluation.latency_ms, evaluation.peak_mb, evaluation.feasible)
        found.append(Design(name, evaluation.loss, mean, stderr, *costs))
    return sorted(found, key=lambda design: design.latency_ms)


# For people ------------------------------------------------------------------------------------------


def render(found: Explanation) -> str:
    """The explanation as text for a terminal."""
    asked = ", ".join(f"{name} {value:,.6g}" for name, value in found.budget.items()) or "no limits"
    held = [f"{name} {value:,.6g}" for name, value in found.held.items() if value != found.budget[name]]
    lines = [
        f"chosen     {found.key}: loss {found.loss:.4f} at {found.latency_ms:.2f} ms and {found.peak_mb:.1f} MB",
        f"budget     {asked}{'; predictions are held to ' + ', '.join(held) if held else ''}",
    ]
    for column, (low, high) in found.reachable.items():
        lines.append(f"reachable  {column} {low:,.6g} to {high:,.6g}")
    distance = "distance   unknown: what the additive model likes best at any latency breaks another limit"
    if found.regret is not None and found.regret_high is not None:
        distance = (
            f"distance   by the additive model the best within the budget is {found.regret:.4f} lower on average, at "
            f"most {found.regret_high:.4f} in 90% of what the evaluations leave possible"
        )
    error = "unknown, they are too few" if found.model_error is None else f"{found.model_error:.4f}"
    lines += [
        distance,
        f"           (the model's own error on evaluations it had not seen: {error}; their spread: "
        f"{found.loss_spread:.4f})",
        "",
        f"{'position':<10} {'gain':>8} {'+-':>7} {'model':>8} {'+-':>7} {'ms':>9} {'MB':>8} {'per ms':>9}  layers",
    ]
    for row in found.positions:
        value = f"{row.loss / row.latency_ms:.5f}" if row.latency_ms > 0 else "-"
        doubt = "" if row.told_from_nothing else "  (cannot be told from nothing)"
        lines.append(
            f"{row.position:<10} {row.loss:>8.4f} {row.loss_stderr:>7.4f} {row.modelled:>8.4f} {row.modelled_sd:>7.4f} "
            f"{row.latency_ms:>9.3f} {row.peak_mb:>8.2f} {value:>9}  {row.layers}{doubt}"
        )
    if not found.positions:
        lines.append("every position is as in the baseline")
    lines.append("")
    for more in found.more:
        if not more.layers:
            lines.append(f"{more.what:<12} lets in nothing that differs from the chosen one at one position")
            continue
        expected = "cannot tell" if more.low is None else f"expects {more.low:+.4f} to {more.high:+.4f}"
        lines.append(
            f"{more.what:<12} {more.loss:+.4f} +- {more.loss_stderr:.4f} with the best of {more.tried} that it lets in "
            f"(the model {expected}):"
        )
        lines += textwrap.wrap(more.layers, 110, initial_indent=" " * 13, subsequent_indent=" " * 13)
    if found.designs:
        lines += ["", f"{'design by hand':<30} {'loss':>8} {'more':>8} {'+-':>7} {'ms':>9} {'MB':>8}"]
    for design in found.designs:
        lines.append(
            f"{design.name:<30} {design.loss:>8.4f} {design.difference:>+8.4f} {design.difference_stderr:>7.4f} "
            f"{design.latency_ms:>9.2f} {design.peak_mb:>8.1f}{'' if design.feasible else '  over the budget'}"
        )
    return "\n".join(lines)
