"""How far a table's predictions were off on whole networks, and the margin that budgets are held to for it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from latency_tables.header import Header
from latency_tables.record import Record

LIMIT = 0.05  # mean error on whole networks above which a table's sums are not trusted as they are
UNKNOWN_MARGIN = 0.10  # held back while nobody has measured whole networks: above every error seen on a quiet machine
FURTHEST = 0.9  # error beyond which a prediction is worth nothing; it keeps the margin a number
ESTIMATED_MARGIN = 0.25  # a roofline model is no measurement, however well its sums add up


@dataclass(frozen=True)
class Audit:
    """The additivity evidence of a table, as a gate.

    Attributes:
        state: ``trusted``, ``over limit``, ``unknown`` or ``estimated``.
        mape: mean absolute error on whole networks, prediction over measurement minus one, if known.
        worst: the largest error seen, if known.
        kendall_tau: rank agreement on whole networks, if known.
        networks: how many whole networks it rests on.
        margin: fraction by which a prediction may be exceeded; budgets that must hold are divided by ``1 + margin``. A
            prediction that is 20% low is exceeded by 25%.
        width: the error that 90% of the networks kept within; that of the margin if unknown.
        corrected: whether all of it is of corrected sums, each network predicted by a fit on the others.
    """

    state: str
    mape: float | None
    worst: float | None
    kendall_tau: float | None
    networks: int
    margin: float
    width: float
    corrected: bool = False

    @classmethod
    def of(
        cls,
        header: Header,
        source: str = "measured",
        corrected: bool = False,
        space: str | None = None,
        rows: str | None = None,
    ) -> Audit:
        """The audit of a table's header; numbers made of estimated rows never count as trusted.

        Args:
            corrected: of sums with the header's correction applied.
            space: whose networks are asked about; evidence of another space's says nothing of them. Any, if None.
            rows: ``rows_digest`` of what is summed; evidence of sums of other rows (another lowering is the fastest
                since) says nothing of these. Any, if None or if the evidence does not state its own.
        """
        evidence = (header.correction if corrected else header.additivity) or {}
        asked = {"space": space, "rows": rows}
        if any(value is not None and evidence.get(name, value) != value for name, value in asked.items()):
            evidence = {}
        mape, worst, tau = (_fraction(evidence.get(name)) for name in ("mape", "worst", "kendall_tau"))
        count = evidence.get("networks")
        networks = count if isinstance(count, int) and not isinstance(count, bool) else 0
        interval = _fraction(evidence.get("interval"))
        if "estimated" in source:
            margin = max(ESTIMATED_MARGIN, _exceeded(worst or 0.0))
            return cls("estimated", mape, worst, tau, networks, margin, _error(margin), corrected)
        if mape is None:
            width = _error(UNKNOWN_MARGIN)
            return cls("unknown", None, worst, tau, networks, UNKNOWN_MARGIN, width, corrected)
        largest = max(mape, worst if worst is not None else 2.0 * mape)
        margin = _exceeded(largest)
        if mape > LIMIT:
            margin = max(UNKNOWN_MARGIN, margin)
            return cls("over limit", mape, worst, tau, networks, margin, _error(margin), corrected)
        return cls("trusted", mape, worst, tau, networks, margin, largest if interval is None else interval, corrected)

    def interval(self, latency_ms: float) -> tuple[float, float]:
        """The range, in ms, of what a prediction may turn out to be."""
        return latency_ms / (1.0 + self.width), latency_ms * (1.0 + _exceeded(self.width))

    @property
    def sentence(self) -> str:
        """One line to print beside every prediction."""
        what = "error of corrected sums" if self.corrected else "error"
        if self.state == "trusted":
            return f"{what} on {self.networks} whole networks: {self.mape:.1%} on average, margin {self.margin:.1%}"
        if self.state == "over limit":
            return (
                f"{what} on whole networks {self.mape:.1%} is over the limit of {LIMIT:.0%}: "
                f"budgets are held to a margin of {self.margin:.0%}"
            )
        if self.state == "estimated":
            return f"made of estimated rows, not measured: margin {self.margin:.0%}"
        return f"error on whole networks unknown (no additivity evidence): margin {self.margin:.0%}"


def rows_digest(records: Iterable[Record]) -> str:
    """12 hex characters of which rows are summed: workload, lowering, method and source, not their numbers."""
    named = sorted(" / ".join((*record.primary_key, record.source)) for record in records)
    return hashlib.sha256("\n".join(named).encode()).hexdigest()[:12]


def _exceeded(error: float) -> float:
    """By how much a measurement exceeds a prediction that is too low by ``error`` of the measurement."""
    error = min(error, FURTHEST)
    return error / (1.0 - error)


def _error(exceeded: float) -> float:
    """The error of a prediction that is exceeded by so much."""
    return exceeded / (1.0 + exceeded)


def _fraction(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0 else None
