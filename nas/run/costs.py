"""Costs for the search: profile what a device's table lacks, and cost arrangements from it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from nas.config import SUPERNET, RunConfig
from nas.errors import AnswerIsNo

if TYPE_CHECKING:
    from latency_tables.budget import Budget
    from nas.search.problem import Problem
    from search_spaces.arrangement import Arrangement
    from search_spaces.variant import Variant

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latency_tables.cost import CostModel
from latency_tables.table import Table, table_path
from nas.console import Report, progress, say
from nas.errors import NasError
from search_spaces.planning import load_plan
from search_spaces.space import Space

if TYPE_CHECKING:
    from device_profiler.device import Device
    from device_profiler.measure import Progress
    from latency_tables.record import Record


def profile_space(
    space: str,
    device: str,
    table_dir: Path,
    *,
    retry: bool = False,
    scheduler: str | None = None,
    lowerings: Sequence[str] = (),
    spatial: bool = False,
) -> dict[str, Any]:
    """Measure what the device's table lacks for the space, and sum up what the table holds.

    With a ``scheduler`` all its workers that own the device measure together. With ``spatial`` the backbone's parts
    are measured too.

    Returns:
        Path and source of the table, its rows, how many of them are new, how many have no number, and why; and each
        part's latency, where parts were asked for.
    """
    from device_profiler.device import Device
    from device_profiler.fleet import profile_fleet
    from device_profiler.profile import profile

    target = Device.load(device)
    loaded = Space.load(space)
    parts = loaded.spatial_workloads(target.precision) if spatial else ()
    keys = {row.key for row in (*loaded.workloads(target.precision), *loaded.ends(target.precision), *parts)}
    before = _rows(target, table_dir)
    with _told() as tell:
        if scheduler is not None:
            table = profile_fleet(
                space,
                target,
                table_dir,
                scheduler,
                spatial=spatial,
                lowerings=lowerings,
                retry=retry,
                progress=tell,
            )
        else:
            table = profile(space, target, table_dir, spatial=spatial, lowerings=lowerings, retry=retry, progress=tell)
    summary = _summary(target, table_dir, table, keys, before)
    if parts:
        rows = {part.name.partition(".")[2]: table.get(part.key) for part in parts}
        whole = table.get(loaded.backbone_workload(target.precision).key)
        summary["spatial"] = {name: row.latency_ms_median if row else None for name, row in rows.items()}
        summary["backbone_ms"] = whole.latency_ms_median if whole else None
    return summary


def render_parts(parts: Mapping[str, float | None], whole: float | None) -> str:
    """The backbone's parts with their latencies, their shares of the sum as bars, and the sum beside the whole."""
    known = {name: value for name, value in parts.items() if value is not None}
    total = sum(known.values())
    lines = []
    for name, value in parts.items():
        if value is None:
            lines.append(f"{name:<18} {'no number':>10}")
        else:
            lines.append(f"{name:<18} {value:>10.3f} ms {value / total:>5.0%} {'#' * round(40 * value / total)}")
    beside = f"; the backbone whole {whole:.3f} ms" if whole is not None else ""
    return "\n".join([*lines, f"{'sum':<18} {total:>10.3f} ms{beside}"])


def profile_operator(
    block: str, shape: str, device: str, table_dir: Path, *, retry: bool = False, lowerings: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure one block at any shape; the summary of ``profile_space`` with its latency and peak."""
    from device_profiler.device import Device
    from device_profiler.profile import profile_operator as measure_operator

    target = Device.load(device)
    before = _rows(target, table_dir)
    with _told() as tell:
        table, workload = measure_operator(
            block, shape, target, table_dir, lowerings=lowerings, retry=retry, progress=tell
        )
    row = table.get(workload.key)
    known = row is not None and row.weights_mb is not None and row.activation_peak_mb is not None
    return {
        **_summary(target, table_dir, table, {workload.key}, before),
        "key": workload.key,
        "lowering": row.lowering if row else None,
        "latency_ms": row.latency_ms_median if row else None,
        "peak_mb": row.weights_mb + row.activation_peak_mb if row and known else None,  # type: ignore[operator]
    }


def audit_space(space: str, device: str, table_dir: Path, networks: int) -> dict[str, Any]:
    """Measure whole networks beside a space's workloads; the table's header gets the evidence and a correction.

    Raises:
        NasError: on fewer than two networks.
    """
    from device_profiler.additivity import audit_table
    from device_profiler.device import Device

    if networks < 2:
        raise NasError(f"--networks must be 2 or more, but is {networks}; 20 is a good number")
    target = Device.load(device)
    with _told() as tell:
        found, table = audit_table(space, target, table_dir, networks=networks, progress=tell)
    evidence, fit = found.evidence(), table.header.correction
    path = table_path(table_dir, target.name, target.runtime)
    message = (
        f"{path}: sums of rows against {evidence['networks']} whole networks: off by {found.mape:.1%} on average, "
        f"{found.worst:.1%} at worst, Kendall tau {found.kendall_tau:.3f}, peak memory off by {found.peak_mape:.1%}"
    )
    if fit is not None:
        message += (
            f"\ncorrection: {fit['form']} (error {fit['mape']:.1%} on networks left out, {fit['bare_mape']:.1%} bare); "
            f"90% of networks lie within {fit['interval']:.1%} of the prediction"
        )
    return {"table": str(path), "additivity": evidence, "correction": fit, "message": message}


@contextmanager
def _told() -> Iterator[Callable[[Progress], None]]:
    """Lowering and timing as two reports, one after the other."""
    with ExitStack() as bars:
        reports: dict[str, Report] = {}

        def tell(event: Progress) -> None:
            title = "lower" if event.stage == "lower" else "measure"
            if title not in reports:
                reports[title] = bars.enter_context(progress(title))
            reports[title](event.done, event.total, event.key or event.detail)

        yield tell


def _rows(device: Device, table_dir: Path) -> dict[tuple[str, str, str], Record]:
    path = table_path(table_dir, device.name, device.runtime)
    return {row.primary_key: row for row in Table.load(path)} if path.exists() else {}


def _summary(
    device: Device, table_dir: Path, table: Table, keys: set[str], before: dict[tuple[str, str, str], Record]
) -> dict[str, Any]:
    rows = [row for row in table if row.key in keys]
    bad = [row for row in rows if not row.ok]
    for row in bad:
        say(f"  {row.key}: {row.status}: {row.reason}")
    return {
        "table": str(table_path(table_dir, device.name, device.runtime)),
        "source": table.source,
        "rows": len(rows),
        "new": sum(before.get(row.primary_key) != row for row in rows),
        "not_ok": len(bad),
        "statuses": dict(Counter(row.status for row in rows)),
        "reference": table.header.reference,
    }


def load_table(device: Device, table_dir: Path) -> Table:
    """The device's table in ``table_dir``.

    Raises:
        TableError: if there is none, or it is damaged.
    """
    return Table.load(table_path(table_dir, device.name, device.runtime))


def cost_model(space: Space, table: Table, *, allow_mixed: bool = False) -> CostModel:
    """Costs of every arrangement of the space by the table's rows; measured and estimated ones mix on request only."""
    return CostModel(load_plan(space), table, allow_mixed=allow_mixed)


@dataclass(frozen=True)
class Within:
    """What a training under a budget draws from.

    Attributes:
        draw: the paths of a step. drawn_from: what they depend on. layers: position -> of each slot, the variants that
            some arrangement within the budget may have there.
    """

    draw: Callable[[int], list[Arrangement]]
    drawn_from: str
    layers: Mapping[str, Sequence[Sequence[Variant]]]

    @property
    def told(self) -> dict[str, Any]:
        """As ``nas.supernet.stage.train`` is told of it."""
        return {"draw": self.draw, "drawn_from": self.drawn_from, "held": self.layers}


def draw_within(config: RunConfig, out: Path) -> Within:
    """Paths of a step among the arrangements that meet the run's budget.

    Raises:
        NasError: if the run has no table of the device, or nothing meets the budget.
    """
    from device_profiler.device import Device
    from latency_tables.table import table_path
    from nas.search.within import WithinBudget, layers_within

    device = Device.load(config.device)
    table = table_path(out / "table", device.name, device.runtime)
    if not table.exists():
        raise NasError(
            f"train.paths=within_budget needs the costs of {device.name}, and {table} is not there; measure them with "
            f"nas profile {config.space} --device {config.device} --table {out / 'table'}"
        )
    problem = make_problem(config, out)
    paths = WithinBudget(problem)
    limits = ", ".join(f"{name} {value:g}" for name, value in problem.budget.bounds.items())
    drawn_from = f"{limits}; table {table_digest(problem.costs)}"
    return Within(lambda step: paths(config.seed, step), drawn_from, layers_within(problem))


def make_problem(config: RunConfig, out: Path, limits: Mapping[str, float | None] | None = None) -> Problem:
    """Space, costs and budget of a run; ``limits`` go before the configured ones."""
    from device_profiler.device import Device
    from nas.search.problem import Problem
    from search_spaces.space import Space

    space, device = Space.load(config.space), Device.load(config.device)
    table = load_table(device, out / "table")
    costs = cost_model(space, table, allow_mixed=config.search.allow_estimated)
    if costs.source != "measured" and not config.search.allow_estimated:
        raise NasError(
            f"the table of {device.name} is {costs.source}, not measured; say --set search.allow_estimated=true to let "
            "estimates drive the search"
        )
    budget = make_budget(config, costs, device.memory_limit_mb, limits or {})
    return Problem(space, costs, budget, config.search.objectives)


def held_problem(problem: Problem, out: Path) -> Problem:
    """The problem as the run's supernet can answer it: designs with layers that it does not hold are left out.

    Raises:
        NasError: if the budget allows layers that the supernet, trained for a narrower one, does not hold.
    """
    from nas.search.within import layers_within
    from nas.supernet.trained import begun_held
    from nas.training.log import begun_state

    held = begun_held(problem.space, out / SUPERNET)
    if held is None:
        return problem
    for name, slots in layers_within(problem).items():
        for slot, variants in enumerate(slots):
            for variant in variants:
                if variant not in held[name][slot]:
                    trained = begun_state(out / SUPERNET).get("paths drawn from", "a narrower one")
                    raise NasError(
                        f"the budget allows {variant.label} at {name}, which the supernet does not hold: it was "
                        f"trained within {trained}, margins taken off; search within that, or train another run"
                    )
    return dataclasses.replace(problem, held=held)


def make_budget(
    config: RunConfig, costs: CostModel, device_memory_mb: float | None, limits: Mapping[str, float | None]
) -> Budget:
    """The limits that are given, else the configured ones, else ``default_latency_ms`` and the device's own.

    Latency is held with the margin that the table's evidence asks for, as ``nas table predict`` holds it.
    """
    from latency_tables.budget import LIMITS, Budget

    wanted = config.search
    asked = {name: getattr(wanted, name) if limits.get(name) is None else limits[name] for name in LIMITS}
    margin = costs.audit.margin if wanted.margin is None else wanted.margin
    if asked["latency_ms"] is None:
        asked["latency_ms"] = default_latency_ms(costs, wanted.latency_ratio, margin)
    if asked["memory_mb"] is None:
        asked["memory_mb"] = device_memory_mb
    return Budget(**asked, margin=margin)


def default_latency_ms(costs: CostModel, ratio: float, margin: float = 0.0) -> float:
    """A limit that leaves a search something to choose.

    Where layers are additions to an empty baseline, ``ratio`` times its latency. Where the baseline has layers that
    others may stand for, as much above the cheapest arrangement as the baseline is, divided by ``ratio``; ``ratio``
    times the cheapest, if the baseline is no dearer or cannot be run. Then it is wider by the ``margin`` that
    predictions are held to.
    """
    import numpy as np

    from latency_tables.optimum import optimum

    baseline = costs.plan.baseline
    if not baseline.num_layers:
        return round(costs.backbone_latency_ms * ratio, 3)
    cheapest = optimum(costs, "latency_ms")
    if cheapest is None:
        raise NasError(f"{costs.plan.space}: no arrangement can be run; measure the failed rows again")
    least, usual = costs.cost(np.stack([cheapest, costs.encode(baseline.labels())])).latency_ms.tolist()
    between = least < usual < float("inf")
    return round((1 + margin) * (least + (usual - least) / ratio if between else least * ratio), 3)


def problem_or_refuse(config: RunConfig, out: Path) -> Problem:
    """The problem, if something in the space meets the budget."""
    from latency_tables.budget import nearest

    problem = make_problem(config, out)
    refused = nearest(problem.costs, problem.budget)
    if refused is not None:
        raise AnswerIsNo(f"nothing meets the budget: {refused.message}")
    return problem


def table_digest(costs: CostModel) -> str:
    """12 hex characters of the rows that costs come from: a changed table is another question."""
    rows = [
        (row.key, row.status, row.latency_ms_median, row.weights_mb, row.activation_peak_mb)
        for row in costs.rows.values()
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]


def table_rows(costs: CostModel) -> dict[str, str]:
    """Workload key -> its costs as words, to say which rows of a table changed."""
    return {
        row.key: f"{row.latency_ms_median} ms and {row.weights_mb} + {row.activation_peak_mb} MB"
        if row.ok
        else row.status
        for row in costs.rows.values()
    }


def table_watch(config: RunConfig, out: Path, problem: Problem) -> Callable[[], None]:
    """What a search calls before each trial: its table is still the one that it began with.

    Raises:
        NasError: when called, if it is not, naming what changed.
    """
    from device_profiler.device import Device
    from latency_tables.table import table_path
    from nas.search.studies import difference

    device = Device.load(config.device)
    path = table_path(out / "table", device.name, device.runtime)
    seen = [path.stat().st_mtime_ns]

    def check() -> None:
        now = path.stat().st_mtime_ns
        if now == seen[0]:
            return
        seen[0] = now
        costs = make_problem(config, out).costs
        if table_digest(costs) != table_digest(problem.costs):
            what = difference(table_rows(problem.costs), table_rows(costs))
            raise NasError(
                f"{path} changed while the search ran{what}; what was evaluated is kept. Put the table back to go on, "
                "or move study.journal away to search with the new one"
            )

    return check
