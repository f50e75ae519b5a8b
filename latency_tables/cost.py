"""What an arrangement costs, from a plan and a table: latency by sum, peak memory by what is alive where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from latency_tables.audit import Audit, rows_digest
from latency_tables.correction import Correction
from latency_tables.errors import TableError
from latency_tables.header import Header
from latency_tables.record import METHODS, SOURCES, Record
from latency_tables.table import Table, describe_sources
from search_spaces.plan import Plan, PlanPosition
from search_spaces.workload import BYTES_PER_ELEMENT

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CHUNK = 4096  # arrangements at a time: the working set stays in the processor's second-level cache
GROUP = 2048  # rows of a table of joint costs: 64 kB, so that looking them up at random stays in the cache too


@dataclass(frozen=True)
class Costs:
    """Costs of N arrangements: arrays of shape (N,); ``inf`` where a chosen layer has no ok row, ``nan`` if unknown."""

    latency_ms: Floats
    weights_mb: Floats
    activation_peak_mb: Floats
    peak_mb: Floats
    parameters: Integers

    def __len__(self) -> int:
        return len(self.latency_ms)


@dataclass(frozen=True)
class OptionCosts:
    """Costs of every option of one position, shape (options,); ``point_mb`` is the peak while its layers run."""

    latency_ms: Floats
    weights_mb: Floats
    parameters: Floats
    point_mb: Floats


class CostModel:
    """The cost of any arrangement of a plan's space, from the rows of one table.

    Latency is the backbone's plus the sum of the chosen workloads'. Peak memory is not additive: it is all weights plus
    the maximum, over the backbone alone and every chosen layer, of the skip tensors alive at the layer's position and
    the workload's own activation peak. A layer that runs frame by frame counts once a frame in latency, and once in
    memory.

    Args:
        plan: the space.
        table: rows of one device and runtime.
        method: which rows to build on; by default the first of in_context, slope and alone that covers every workload.
        allow_mixed: build on measured and estimated rows together. Off, that is refused; on, ``source`` says so.
        correct: apply the table's fitted correction to the latencies; by default where there is one.

    Attributes:
        rows, rows_digest: the row of each workload, and which ones they are.
        source: ``measured``, ``estimated``, ``imported`` or ``mixed: ...``; print it beside every number.
        audit: how far predictions of this table were off on whole networks, if that is known.
        unknown_memory: workload keys whose rows know no memory; arrangements that use one have a ``nan`` peak.

    Raises:
        TableError: if rows are missing (naming them and the command that measures them), if the backbone's row is not
            ok, or if sources mix without ``allow_mixed``.
    """

    def __init__(
        self,
        plan: Plan,
        table: Table,
        method: str | None = None,
        *,
        allow_mixed: bool = False,
        correct: bool | None = None,
    ) -> None:
        self.plan = plan
        self.header = table.header
        self.precision = _precision(table)
        self.positions = tuple(position.name for position in plan.positions)
        self.method = _choose_method(plan, table, self.precision, method)
        self.rows = self._collect(table)
        used = Counter(record.source for record in self.rows.values())
        self.sources = {source: used[source] for source in SOURCES if used[source]}
        self.source = describe_sources(self.sources)
        if len(self.sources) > 1 and not allow_mixed:
            raise TableError(
                f"{plan.space} on {table.header.device}: rows of several sources ({self.source}) do not mix silently; "
                "measure the rest with `nas profile`, or say so with --allow-mixed"
            )
        self.rows_digest = rows_digest(self.rows.values())
        self.correction = _correction(table.header, plan, correct, self.rows_digest)
        self.audit = Audit.of(
            table.header, self.source, corrected=self.correction is not None, space=plan.space, rows=self.rows_digest
        )
        self.unknown_memory = tuple(
            record.key
            for record in self.rows.values()
            if record.ok and (record.weights_mb is None or record.activation_peak_mb is None)
        )
        self._element_mb = BYTES_PER_ELEMENT[self.precision] / 1e6
        fit = self.correction
        offset, scale, per_layer = (fit.offset_ms, fit.scale, fit.per_layer_ms) if fit else (0.0, 1.0, 0.0)
        latency, self.backbone_weights_mb, self.backbone_activation_mb = self._backbone_costs()
        self.backbone_latency_ms = offset + scale * latency
        self._layers = {
            workload: _costs_of(record)
            for workload, record in self.rows.items()
            if workload not in plan.backbone_workloads
        }
        self._scale, self._per_layer = scale, per_layer
        self.live_mb = tuple(plan.skip_elements(name) * self._element_mb for name in self.positions)
        self.option_costs = tuple(
            self._option_costs(position, live) for position, live in zip(plan.positions, self.live_mb, strict=True)
        )
        self._check_correction()
        self.options = tuple(_labelled(position) for position in plan.positions)
        self._index = tuple({option: i for i, option in enumerate(options)} for options in self.options)

    def _collect(self, table: Table) -> dict[str, Record]:
        """The row of each workload: the fastest ok one of the method, else the failed one that says why."""
        found: dict[str, Record] = {}
        missing = []
        for workload in self.plan.workloads:
            key = f"{workload}@{self.precision}"
            method = None if workload in self.plan.backbone_workloads else self.method
            record = table.get(key, method=method)
            if record is None:
                failed = [row for row in table.rows(key) if method in (None, row.method)]
                record = failed[0] if failed else None
            if record is None:
                missing.append(key)
            else:
                found[workload] = record
        if missing:
            named = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise TableError(
                f"{self.plan.space} on {table.header.device}/{table.header.runtime}: {len(missing)} of "
                f"{len(self.plan.workloads)} workloads have no row ({named}); measure them with "
                f"`nas profile {self.plan.space} --device {table.header.device}`"
            )
        for backbone in (found[workload] for workload in self.plan.backbone_workloads):
            if backbone.ok:
                continue
            raise TableError(
                f"{backbone.key} on {table.header.device}: the backbone's row is {backbone.status} "
                f"({backbone.reason or 'no reason given'}); without it nothing can be costed, measure it again"
            )
        return found

    def _backbone_costs(self) -> tuple[float, float, float]:
        """(latency_ms, weights_mb, activation_peak_mb) of the bare backbone; of several parts, one after the other."""
        latency, weights, activation = _costs_of(self.rows[self.plan.backbone_workload])
        for part in self.plan.backbone_rest:
            ms, mb, peak = _costs_of(self.rows[part.workload])
            latency, weights = latency + part.calls * ms, weights + mb
            activation = float(np.maximum(activation, part.live * self._element_mb + peak))
        return latency, weights, activation

    def _check_correction(self) -> None:
        """Refuse a correction by which some whole network takes no time: it says nothing of networks that large."""
        if self.correction is None:
            return
        usable = [costs.latency_ms[np.isfinite(costs.latency_ms)] for costs in self.option_costs]
        least = self.backbone_latency_ms + sum(float(values.min()) for values in usable if len(values))
        if least <= 0:
            fit = self.correction
            raise TableError(
                f"{self.plan.space} on {self.header.device}: the table's correction ({fit.form}: {fit.offset_ms:+g} "
                f"ms, times {fit.scale:g}, {fit.per_layer_ms:+g} ms a layer) makes a whole network cost {least:.3f} "
                f"ms; fit it on more networks with `nas profile {self.plan.space} --device {self.header.device} "
                "--networks 40`, or delete `correction` from the table's header"
            )

    def _option_costs(self, position: PlanPosition, live_mb: float) -> OptionCosts:
        latency, weights, parameters, point = (np.zeros(len(position.options)) for _ in range(4))
        layers = [(*self._layers[layer.workload], layer.parameters) for layer in position.layers]
        calls = position.calls
        for i, option in enumerate(position.options):
            # Summed in one order whatever the order of the layers, so that equal sets of layers have equal costs.
            chosen = [layers[j] for j in sorted(option)]
            latency[i] = sum(self._scale * calls * layer[0] + self._per_layer for layer in chosen)
            weights[i] = sum(layer[1] for layer in chosen)
            parameters[i] = sum(layer[3] for layer in chosen)
            if chosen:
                point[i] = live_mb + np.max([layer[2] for layer in chosen])
        return OptionCosts(latency, weights, parameters, point)

    @property
    def size(self) -> int:
        """How many arrangements there are."""
        return self.plan.size

    def encode(self, arrangement: Mapping[str, Sequence[str]]) -> Integers:
        """Option indices, shape (P,), of ``{position: (variant labels, ...)}``; positions left out are empty.

        Raises:
            TableError: on a position or a choice of layers that the plan does not offer.
        """
        unknown = set(arrangement) - set(self.positions)
        if unknown:
            raise TableError(
                f"{self.plan.space} has no position {', '.join(sorted(unknown))}; positions: "
                f"{', '.join(self.positions)}"
            )
        indices = np.zeros(len(self.positions), dtype=np.int64)
        for p, name in enumerate(self.positions):
            labels = tuple(arrangement.get(name, ()))
            if labels not in self._index[p]:
                position = self.plan.positions[p]
                offered = ", ".join(layer.label for layer in position.layers)
                raise TableError(
                    f"{name}: {' + '.join(labels) or 'no layer'} is not offered there; {position.least} to "
                    f"{position.max_layers} layers of "
                    f"{offered}"
                )
            indices[p] = self._index[p][labels]
        return indices

    def decode(self, indices: Sequence[int] | Integers) -> dict[str, tuple[str, ...]]:
        """``{position: (variant labels, ...)}`` of option indices, shape (P,), every position included."""
        row = self._checked(np.asarray(indices)[None])[0]
        return {name: self.options[p][row[p]] for p, name in enumerate(self.positions)}

    def random(self, count: int, rng: np.random.Generator) -> Integers:
        """``count`` arrangements drawn uniformly, shape (count, P)."""
        sizes = np.array([len(options) for options in self.options])
        return rng.integers(0, sizes, size=(count, len(sizes)), dtype=np.int64)

    def cost(self, indices: NDArray[Any] | Sequence[Sequence[int]]) -> Costs:
        """Costs of N arrangements.

        Args:
            indices: option indices, integers, shape (N, P).

        Raises:
            TableError: on another shape, or an index that is no option.
        """
        chosen = self._shaped(np.asarray(indices))
        count = len(chosen)
        latency, weights, parameters, activation = (np.empty(count) for _ in range(4))
        start_row = np.array([self.backbone_latency_ms, self.backbone_weights_mb, self.plan.backbone_parameters, 0.0])
        size = min(CHUNK, count)
        sums, taken = np.empty((size, 4)), np.empty((size, 4))
        joint, column = np.empty(size, dtype=np.intp), np.empty(size, dtype=np.intp)
        for start in range(0, count, CHUNK):
            stop = min(start + CHUNK, count)
            part = stop - start
            total, row, index, one = sums[:part], taken[:part], joint[:part], column[:part]
            peak_now = activation[start:stop]
            total[:], peak_now[:] = start_row, self.backbone_activation_mb
            for places, table in self._groups:
                index[:] = 0
                for p in places:
                    one[:] = chosen[start:stop, p]
                    # A negative index, seen as unsigned, is larger than any option.
                    if part and one.view(np.uintp).max() >= len(self.options[p]):
                        self._refuse(p, chosen)
                    index *= len(self.options[p])
                    index += one
                # Indices were checked above; "clip" spares numpy a second look at each of them.
                np.take(table, index, axis=0, out=row, mode="clip")
                total += row
                np.maximum(peak_now, row[:, 3], out=peak_now)
            latency[start:stop], weights[start:stop], parameters[start:stop] = total[:, 0], total[:, 1], total[:, 2]
        peak = weights + activation
        if self.unknown_memory:
            for values in (weights, activation, peak):
                values[np.isinf(latency)] = np.inf
        return Costs(latency, weights, activation, peak, parameters.astype(np.int64))

    def column(self, name: str, indices: NDArray[Any] | Sequence[Sequence[int]]) -> Floats:
        """The sum of any other additive column (energy, load time, ...), shape (N,); ``nan`` where a row lacks it.

        Raises:
            TableError: if no row has the column.
        """
        values = {workload: _column_of(record, name) for workload, record in self.rows.items()}
        if all(np.isnan(value) for value in values.values()):
            raise TableError(
                f"{self.header.device}/{self.header.runtime}: no row has a column {name!r}; measure it first"
            )
        chosen = self._checked(np.asarray(indices))
        rest = sum(part.calls * values[part.workload] for part in self.plan.backbone_rest)
        total = np.full(len(chosen), values[self.plan.backbone_workload] + rest)
        for p, position in enumerate(self.plan.positions):
            layers = [position.calls * values[layer.workload] for layer in position.layers]
            total += np.array([sum(layers[j] for j in sorted(option)) for option in position.options])[chosen[:, p]]
        return total

    def breakdown(self, indices: Sequence[int] | Integers) -> list[dict[str, Any]]:
        """Where one arrangement's milliseconds and megabytes go: the backbone's row, then one for each position.

        Each row has ``position``, ``layers`` (labels), ``latency_ms``, ``weights_mb``, ``live_mb`` (skip tensors),
        ``point_peak_mb`` (0 where nothing runs), ``parameters`` and ``is_peak`` (this point sets the network's peak).
        """
        row = self._checked(np.asarray(indices)[None])[0]
        rows: list[dict[str, Any]] = [
            {
                "position": "backbone",
                "layers": (),
                "latency_ms": self.backbone_latency_ms,
                "weights_mb": self.backbone_weights_mb,
                "live_mb": 0.0,
                "point_peak_mb": self.backbone_activation_mb,
                "parameters": self.plan.backbone_parameters,
            }
        ]
        for p, name in enumerate(self.positions):
            costs, i = self.option_costs[p], row[p]
            rows.append(
                {
                    "position": name,
                    "layers": self.options[p][i],
                    "latency_ms": float(costs.latency_ms[i]),
                    "weights_mb": float(costs.weights_mb[i]),
                    "live_mb": self.live_mb[p],
                    "point_peak_mb": float(costs.point_mb[i]),
                    "parameters": int(costs.parameters[i]),
                }
            )
        highest = max((item["point_peak_mb"] for item in rows), default=0.0)
        for item in rows:
            item["is_peak"] = item["point_peak_mb"] == highest
        return rows

    @cached_property
    def _groups(self) -> tuple[tuple[tuple[int, ...], Floats], ...]:
        """Neighbouring positions taken together, and the costs of their joint options, shape (joint options, 4).

        The columns are latency, weights, parameters and the highest point: one lookup where several were.
        """
        groups: list[tuple[list[int], Floats]] = []
        for p, costs in enumerate(self.option_costs):
            own = np.stack([costs.latency_ms, costs.weights_mb, costs.parameters, costs.point_mb], axis=1)
            if groups and len(groups[-1][1]) * len(own) <= GROUP:
                places, before = groups[-1]
                sums = before[:, None, :3] + own[None, :, :3]
                highest = np.maximum(before[:, None, 3:], own[None, :, 3:])
                groups[-1] = ([*places, p], np.concatenate([sums, highest], axis=2).reshape(-1, 4))
            else:
                groups.append(([p], own))
        return tuple((tuple(places), np.ascontiguousarray(table)) for places, table in groups)

    def _shaped(self, indices: NDArray[Any]) -> NDArray[Any]:
        count = len(self.positions)
        if indices.ndim != 2 or indices.shape[1] != count or (indices.size and indices.dtype.kind not in "iu"):
            raise TableError(
                f"option indices must be integers of shape (N, {count}), got {indices.dtype} {indices.shape}; "
                "use encode()"
            )
        return indices

    def _checked(self, indices: NDArray[Any]) -> NDArray[Any]:
        chosen = self._shaped(indices)
        for p, options in enumerate(self.options):
            if len(chosen) and not (0 <= chosen[:, p].min() and chosen[:, p].max() < len(options)):
                self._refuse(p, chosen)
        return chosen

    def _refuse(self, p: int, chosen: NDArray[Any]) -> NoReturn:
        lowest, highest = chosen[:, p].min(), chosen[:, p].max()
        raise TableError(
            f"{self.positions[p]}: option {lowest if lowest < 0 else highest} does not exist, "
            f"0 to {len(self.options[p]) - 1} do; use encode()"
        )


def _labelled(position: PlanPosition) -> tuple[tuple[str, ...], ...]:
    """Every option of a position by the labels of its layers."""
    labels = [layer.label for layer in position.layers]
    return tuple(tuple(labels[i] for i in option) for option in position.options)


def _precision(table: Table) -> str:
    found = {table.header.precision} if table.header.precision else {record.precision for record in table}
    if len(found) != 1 or not found <= BYTES_PER_ELEMENT.keys():
        raise TableError(
            f"{table.header.device}/{table.header.runtime}: costs need rows of one precision, "
            f"{' or '.join(BYTES_PER_ELEMENT)}, "
            f"got {', '.join(sorted(found)) or 'no rows'}; state the precision in the table's header"
        )
    return found.pop()


def _choose_method(plan: Plan, table: Table, precision: str, method: str | None) -> str:
    if method is not None:
        if method not in METHODS:
            raise TableError(f"method is {method!r}; use one of {', '.join(METHODS)}")
        return method
    measured = {(record.key, record.method) for record in table}
    frame = {f"{workload}@{precision}" for workload in plan.backbone_workloads}
    blocks = [key for key in plan.keys(precision) if key not in frame]
    for candidate in reversed(METHODS):
        if blocks and all((key, candidate) in measured for key in blocks):
            return candidate
    return METHODS[0]


def _correction(header: Header, plan: Plan, correct: bool | None, rows: str) -> Correction | None:
    """The correction to apply: the header's, unless it was fitted on networks of another space, or sums of other
    rows."""
    if header.correction is None:
        if correct:
            raise TableError(
                f"{header.device}/{header.runtime}: the table has no correction; leave it out, or fit one with "
                f"`nas profile {plan.space} --device {header.device} --networks 20`"
            )
        return None
    own = {"space": plan.space, "rows": rows}
    other = any(header.correction.get(name, value) != value for name, value in own.items())
    if correct is False or (correct is None and other):
        return None
    return Correction.from_mapping(header.correction)


def _costs_of(record: Record) -> tuple[float, float, float]:
    """(latency_ms, weights_mb, activation_peak_mb): inf for a failed row, nan for what is unknown."""
    if not record.ok:
        return np.inf, np.inf, np.inf
    values = (record.latency_ms_median, record.weights_mb, record.activation_peak_mb)
    latency, weights, activation = (np.nan if value is None else value for value in values)
    return latency, weights, activation


def _column_of(record: Record, name: str) -> float:
    value = dict(record.extra).get(name, getattr(record, name, None))
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else float("nan")
