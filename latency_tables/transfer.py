"""A device hardly measured: the rows it lacks, predicted from another device's table and the few rows it has."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from latency_tables.errors import TableError
from latency_tables.header import Header
from latency_tables.plan import BYTES_PER_ELEMENT
from latency_tables.record import Record
from latency_tables.table import Table

Floats = NDArray[np.float64]

MIN_ROWS = 2
Z90 = 1.6449  # half of a normal distribution's 90% interval, in standard deviations
LEVEL = 3.0  # prior standard deviation of the log ratio of two devices: a factor of twenty is nothing unusual
# Prior standard deviations that are averaged over by their marginal likelihood: few rows cannot choose between them.
SLOPES = (0.03, 0.1, 0.3)  # of the log ratio per log of latency: small work pays overhead on one of the two
FAMILIES = (0.1, 0.3, 0.7)  # of a family of blocks against the others: one has the better convolution, say
NOISES = (0.03, 0.08, 0.2, 0.5)  # of a single row


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

    The log of the ratio of the two devices' latencies is a level, a slope in the log of the source's latency and an
    offset of each family of blocks, each with a normal prior; Bayesian linear regression, averaged over the priors'
    widths by marginal likelihood (Bishop 2006, sections 3.3 to 3.5). Weights follow the precision; activation peaks
    follow it too, times the ratio that the measured rows show.

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
    """The regression over all rows, known ones and others: features, shape (n, K), and the priors tried."""

    def __init__(self, rows: Sequence[Record]) -> None:
        size = np.log([_ms(row) for row in rows])
        families = sorted({_family(row) for row in rows})
        member = np.array([[float(_family(row) == family) for family in families] for row in rows])
        self.features = np.concatenate([np.ones((len(rows), 1)), (size - size.mean())[:, None], member], axis=1)
        self._priors = [
            (np.array([LEVEL**2, slope**2, *[family**2] * len(families)]), noise**2)
            for slope, family, noise in itertools.product(SLOPES, FAMILIES, NOISES)
        ]

    def _posteriors(self, known: NDArray[np.intp], values: Floats) -> list[tuple[float, Floats, Floats, float]]:
        """(log marginal likelihood, mean, covariance, noise) of the coefficients under each prior."""
        x = self.features[known]
        found = []
        for prior, noise in self._priors:
            gram = (x * prior) @ x.T + noise * np.eye(len(x))
            factor = np.linalg.solve(gram, x * prior).T  # prior covariance times features, over the data's covariance
            mean = factor @ values
            covariance = np.diag(prior) - factor @ (x * prior)
            _, logdet = np.linalg.slogdet(gram)
            evidence = -0.5 * (float(values @ np.linalg.solve(gram, values)) + float(logdet))
            found.append((evidence, mean, covariance, noise))
        return found

    def _weights(self, posteriors: list[tuple[float, Floats, Floats, float]]) -> Floats:
        evidence = np.array([posterior[0] for posterior in posteriors])
        weights = np.exp(evidence - evidence.max())
        return np.asarray(weights / weights.sum())

    def predict(self, known: NDArray[np.intp], values: Floats) -> tuple[Floats, Floats]:
        """Mean and variance of every row's log ratio, shape (n,) each."""
        posteriors = self._posteriors(known, values)
        weights = self._weights(posteriors)
        means = np.array([self.features @ mean for _, mean, _, _ in posteriors])
        x = self.features
        spreads = np.array([((x @ covariance) * x).sum(axis=1) + noise for *_, covariance, noise in posteriors])
        mean = weights @ means
        return mean, weights @ (spreads + (means - mean) ** 2)

    def next(self, known: NDArray[np.intp], values: Floats, count: int) -> list[int]:
        """Greedily, the rows whose measurement leaves the least variance over all others; it depends on no outcome."""
        posteriors = self._posteriors(known, values)
        weights = self._weights(posteriors)
        covariances = [covariance.copy() for _, _, covariance, _ in posteriors]
        open_rows = [i for i in range(len(self.features)) if i not in set(known.tolist())]
        chosen: list[int] = []
        while open_rows and len(chosen) < count:
            gains = np.zeros(len(open_rows))
            for weight, covariance, (*_, noise) in zip(weights, covariances, posteriors, strict=True):
                shared = self.features[open_rows] @ covariance @ self.features[open_rows].T
                gains += weight * (shared**2).sum(axis=0) / (np.diag(shared) + noise)
            best = open_rows.pop(int(np.argmax(gains)))
            chosen.append(best)
            x = self.features[best]
            for k, (*_, noise) in enumerate(posteriors):
                seen = covariances[k] @ x
                covariances[k] -= np.outer(seen, seen) / (x @ seen + noise)
        return chosen


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
