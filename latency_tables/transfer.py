"""A device hardly measured: the rows it lacks, predicted from another device's table and the few rows it has."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from latency_tables.errors import TableError
from latency_tables.header import Header
from latency_tables.record import Record
from latency_tables.table import Table
from search_spaces.workload import BYTES_PER_ELEMENT

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

MIN_ROWS = 2
Z90 = 1.6449  # half of a normal distribution's 90% interval, in standard deviations
LEVEL = 3.0  # prior standard deviation of the log ratio of two devices: a factor of twenty is nothing unusual
# Prior standard deviations that are averaged over by their marginal likelihood: few rows cannot choose between them.
SLOPES = (0.03, 0.1, 0.3)  # of the log ratio per log of latency: small work pays overhead on one of the two
FAMILIES = (0.1, 0.3, 0.7)  # of a family of blocks against the others: one has the better convolution, say
DETAILS = (0.02, 0.08, 0.2)  # of a variant, a size of head, a shape: kernels are made for some
CELLS = (0.05, 0.2, 0.5)  # of a family at one shape, and of a family per log of channels: tiles, caches, padding
NOISES = (0.01, 0.03, 0.1)  # of a single row
Prior = tuple[float, float, float, float, float]  # widths of slopes, families, details, cells and noise
PRIORS: tuple[Prior, ...] = tuple(itertools.product(SLOPES, FAMILIES, DETAILS, CELLS, NOISES))
FIRST: Prior = (0.1, 0.3, 0.08, 0.2, 0.03)  # of the rows to measure before anything is known
Parts = tuple[Floats, Floats, Floats, Floats, Floats]  # the same, level first and noise left out
LIKELY, ASKED = 12, 400  # priors, and rows, that a choice of what to measure next looks at


@dataclass(frozen=True)
class Transfer:
    """What was predicted, and what to measure next.

    Attributes:
        table: the target's rows, then the predicted ones: ``estimated``, with their interval in ``latency_low_ms`` and
            ``latency_high_ms`` and the method in ``estimator``.
        predicted: keys of the predicted rows.
        width: mean half width of the 90% intervals, as a fraction of the prediction.
        next: keys to measure next, the one that shrinks all intervals together most first.
    """

    table: Table
    predicted: tuple[str, ...]
    width: float
    next: tuple[str, ...]


def transfer(source: Table, target: Table, count: int = 3) -> Transfer:
    """Predict the rows that ``target`` lacks from ``source``.

    The log of the ratio of the two devices' latencies is a level, slopes in the log of the source's latency and of its
    latency an element, and offsets of each operator, each form (1D, 3D), each family of blocks, each variant, each size
    of an attention's head, each shape and each family at each shape, and a slope of each family in the log of its
    channels, all with a normal prior: a Gaussian process whose
    kernel is a sum (Duvenaud et al. 2011), averaged over the priors' widths by marginal likelihood (Rasmussen and
    Williams 2006, section 5.4). Weights follow the precision; activation peaks follow it too, times the ratio that the
    measured rows show.

    Args:
        count: how many rows to name for measuring next.

    Raises:
        TableError: if fewer than ``MIN_ROWS`` workloads have a number in both, or nothing is left to predict.
    """
    known, unknown = _split(source, target)
    if len(known) < MIN_ROWS:
        first = ", ".join(measure_first(source, target, MIN_ROWS)) or "what the source has"
        raise TableError(
            f"{_name(source)} and {_name(target)} share {len(known)} workloads with a number, a transfer needs "
            f"{MIN_ROWS} or more; measure these first: {first}"
        )
    if not unknown:
        raise TableError(f"{_name(target)} has every workload of {_name(source)}; there is nothing to transfer")
    rows = [*(old for old, _ in known), *unknown]
    model = _Model(rows)
    ratios = np.log([_ms(new) / _ms(old) for old, new in known])
    mean, variance = model.predict(np.arange(len(known)), ratios)
    left = np.arange(len(known), len(rows))
    scale = BYTES_PER_ELEMENT[_precision(target)] / BYTES_PER_ELEMENT[_precision(source)]
    activation = _activation_ratio(known, scale)
    estimator = f"transfer from {_name(source)}, {len(known)} measured rows, 90% interval"
    records = []
    for i in left:
        median, spread = _ms(rows[i]) * float(np.exp(mean[i])), float(np.exp(Z90 * np.sqrt(variance[i])))
        records.append(_estimated(rows[i], _precision(target), estimator, median, spread, scale, activation))
    table = Table(_header(target.header, source), [*target, *records])
    widths = [(row.latency_high_ms or 0.0) / (row.latency_ms_median or 1.0) - 1.0 for row in records]
    order = model.next(np.arange(len(known)), ratios, count)
    return Transfer(
        table,
        tuple(record.key for record in records),
        float(np.mean(widths)),
        tuple(_key(rows[i], _precision(target)) for i in order),
    )


def measure_first(source: Table, target: Table, count: int) -> tuple[str, ...]:
    """The rows that narrow a transfer most before anything is known of how the devices compare; keys of the target."""
    known, unknown = _split(source, target)
    rows = [*(old for old, _ in known), *unknown]
    if not rows:
        return ()
    ratios = np.log([_ms(new) / _ms(old) for old, new in known])
    order = _Model(rows).next(np.arange(len(known)), ratios, count)
    return tuple(_key(rows[i], _precision(target)) for i in order)


class _Model:
    """The process over all rows, known ones and others: what they have in common, and the priors tried."""

    def __init__(self, rows: Sequence[Record]) -> None:
        size = np.log([_ms(row) for row in rows])
        density = size - np.log([_elements(row) for row in rows])
        channels = np.log([float(row.channels or 1) for row in rows])
        self._slopes = np.stack([size - size.mean(), density - density.mean()])
        self._channels = channels - channels.mean()
        self._codes = [
            np.unique([label(row) for row in rows], return_inverse=True)[1]
            for label in (_operator, _form, _family, _setting, _head, _shape, _cell)
        ]

    def _parts(self, ours: Indices, theirs: Indices) -> Parts:
        """What the widths of a prior multiply, between two sets of rows: level, slopes, families, details, cells."""
        slopes = sum(np.outer(slope[ours], slope[theirs]) for slope in self._slopes)
        same = [1.0 * (code[ours][:, None] == code[theirs][None]) for code in self._codes]
        families = same[0] + same[1] + 0.25 * same[2]
        cells = same[6] + same[2] * np.outer(self._channels[ours], self._channels[theirs])
        level = np.ones((len(ours), len(theirs)))
        return level, np.asarray(slopes), families, same[3] + same[4] + same[5], cells

    def _own(self, rows: Indices) -> Parts:
        """The same of each row with itself."""
        ones = np.ones(len(rows))
        slopes = (self._slopes[:, rows] ** 2).sum(axis=0)
        return ones, slopes, 2.25 * ones, 3.0 * ones, 1.0 + self._channels[rows] ** 2

    def _weigh(self, known: Indices, values: Floats) -> Floats:
        """How much the measured rows speak for each prior: its marginal likelihood, shape (priors,)."""
        parts = self._parts(known, known)
        evidence = []
        for prior in PRIORS:
            gram = _kernel(prior, parts) + prior[-1] ** 2 * np.eye(len(known))
            evidence.append(-0.5 * float(values @ np.linalg.solve(gram, values)) - 0.5 * np.linalg.slogdet(gram)[1])
        weights = np.exp(np.array(evidence) - max(evidence))
        return np.asarray(weights / weights.sum())

    def predict(self, known: Indices, values: Floats) -> tuple[Floats, Floats]:
        """Mean and variance of every row's log ratio, shape (n,) each."""
        every = np.arange(self._slopes.shape[1])
        among, across, own = self._parts(known, known), self._parts(every, known), self._own(every)
        weights = self._weigh(known, values)
        means, spreads = [], []
        for prior in PRIORS:
            noise = prior[-1] ** 2
            shared = _kernel(prior, across)
            factor = np.linalg.solve(_kernel(prior, among) + noise * np.eye(len(known)), shared.T)
            means.append(values @ factor)
            spreads.append(_kernel(prior, own) - (shared.T * factor).sum(axis=0) + noise)
        mean = weights @ np.array(means)
        return mean, weights @ (np.array(spreads) + (np.array(means) - mean) ** 2)

    def next(self, known: Indices, values: Floats, count: int) -> list[int]:
        """Greedily, the rows whose measurement leaves the least variance over all others; it depends on no outcome."""
        weights = self._weigh(known, values) if len(known) else np.array([prior == FIRST for prior in PRIORS]) * 1.0
        open_rows = np.setdiff1d(np.arange(self._slopes.shape[1]), known)
        if len(open_rows) > ASKED:  # of so many, some stand for the rest
            open_rows = np.sort(np.random.default_rng(0).choice(open_rows, ASKED, replace=False))
        own, across, among = (
            self._parts(*pair) for pair in ((open_rows, open_rows), (open_rows, known), (known, known))
        )
        left = []
        for index in np.argsort(-weights, kind="stable")[:LIKELY]:
            prior, noise = PRIORS[index], PRIORS[index][-1] ** 2
            shared = _kernel(prior, across)
            seen = shared @ np.linalg.solve(_kernel(prior, among) + noise * np.eye(len(known)), shared.T)
            left.append((float(weights[index]), _kernel(prior, own) - seen, noise))
        chosen: list[int] = []
        free = np.ones(len(open_rows), dtype=bool)
        while free.any() and len(chosen) < count:
            gains = sum(w * (c**2)[free].sum(axis=0) / (np.diag(c) + noise) for w, c, noise in left)
            best = int(np.argmax(np.where(free, gains, -np.inf)))
            free[best] = False
            chosen.append(int(open_rows[best]))
            left = [(w, c - np.outer(c[best], c[best]) / (c[best, best] + noise), noise) for w, c, noise in left]
        return chosen


def _kernel(prior: Prior, parts: Parts) -> Floats:
    return np.asarray(sum(width**2 * part for width, part in zip((LEVEL, *prior[:-1]), parts, strict=True)))


def _split(source: Table, target: Table) -> tuple[list[tuple[Record, Record]], list[Record]]:
    """Workloads with a number in both, and rows of the source that the target lacks."""
    precision = _precision(target)
    known, unknown = [], []
    for key in source.keys:
        old = source.get(key)
        if old is None:
            continue
        new = target.get(_key(old, precision))
        if new is not None and new.source != "estimated":
            known.append((old, new))
        elif not target.rows(_key(old, precision)):
            unknown.append(old)
    return known, unknown


def _estimated(
    row: Record, precision: str, estimator: str, median: float, spread: float, scale: float, activation: float
) -> Record:
    """The row of the target: nothing that was measured on the source stays in it."""
    return Record(
        _key(row, precision),
        row.lowering,
        row.method,
        row.block,
        row.params,
        row.channels,
        row.frames,
        row.height,
        row.width,
        row.batch,
        precision,
        source="estimated",
        latency_ms_median=median,
        latency_low_ms=median / spread,
        latency_high_ms=median * spread,
        weights_mb=None if row.weights_mb is None else row.weights_mb * scale,
        activation_peak_mb=None if row.activation_peak_mb is None else row.activation_peak_mb * activation,
        static_peak_mb=None if row.static_peak_mb is None else row.static_peak_mb * scale,
        estimator=estimator,
    )


def _header(header: Header, source: Table) -> Header:
    notes = f"{header.notes} Rows that are estimated were transferred from {_name(source)}.".strip()
    return replace(header, notes=notes, additivity=None, correction=None)


def _activation_ratio(known: list[tuple[Record, Record]], scale: float) -> float:
    """How activation peaks compare; as the precisions do where no row of the target knows one."""
    pairs = [(old.activation_peak_mb, new.activation_peak_mb) for old, new in known]
    logs = [np.log(new / old) for old, new in pairs if old and new]
    return float(np.exp(np.median(logs))) if logs else scale


def _family(row: Record) -> str:
    return row.block or row.key.partition(":")[0]


def _form(row: Record) -> str:
    return _family(row)[-2:] if _family(row)[-2:] in ("1D", "3D") else "whole"


def _operator(row: Record) -> str:
    return _family(row).removesuffix(_form(row))


def _setting(row: Record) -> str:
    return row.key.partition("/")[0]


def _head(row: Record) -> str:
    """The family and the channels of one head: kernels of attention are made for some."""
    params = dict(
        item.strip().split("=", 1) for item in _setting(row).partition("(")[2].rstrip(")").split(",") if "=" in item
    )
    heads = params.get("heads", "")
    return f"{_family(row)} {row.channels // int(heads) if row.channels and heads.isdigit() and int(heads) else ''}"


def _shape(row: Record) -> str:
    return f"{row.channels} {row.frames} {row.height} {row.width} {row.batch}"


def _cell(row: Record) -> str:
    return f"{_family(row)} {_shape(row)}"


def _elements(row: Record) -> float:
    """Elements of the feature map; of an unknown shape as many as leave a latency of one."""
    sizes = (row.channels, row.frames, row.height, row.width, row.batch)
    return float(np.prod([float(size) for size in sizes if size])) if all(sizes) else _ms(row)


def _key(row: Record, precision: str) -> str:
    return f"{row.key.rpartition('@')[0]}@{precision}"


def _ms(row: Record) -> float:
    return float(row.latency_ms_median or 0.0)


def _name(table: Table) -> str:
    return f"{table.header.device}/{table.header.runtime}"


def _precision(table: Table) -> str:
    if table.header.precision not in BYTES_PER_ELEMENT:
        raise TableError(f"{_name(table)}: a transfer needs a header that states its precision; add it, then seal it")
    return table.header.precision
