"""A correction of summed latencies, fitted on whole networks of the same device, and the interval it leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latency_tables.errors import TableError

Floats = NDArray[np.float64]

COVERAGE = 0.9  # of the interval
MIN_NETWORKS = 8  # below this, leaving one out says nothing about a fit of up to three parameters
# Simplest first; each is what is free beside the sum itself.
FORMS: dict[str, tuple[str, ...]] = {
    "none": (),
    "scale": ("scale",),
    "scale + offset": ("scale", "offset"),
    "scale + per layer": ("scale", "per_layer"),
    "scale + offset + per layer": ("scale", "offset", "per_layer"),
}


@dataclass(frozen=True)
class Correction:
    """``offset_ms + scale * sum + per_layer_ms * layers``, and its error on networks it was not fitted on.

    Attributes:
        form: one of ``FORMS``: ``none`` where no fit is better than the bare sum.
        mape, worst: mean and largest absolute error, each network predicted by a fit on the others.
        interval: half the width, as a fraction, of the interval that holds 90% of networks; see ``interval_of``.
        networks: how many it rests on.
        bare_mape: the same mean error without correction.
    """

    form: str
    offset_ms: float
    scale: float
    per_layer_ms: float
    mape: float
    worst: float
    interval: float
    networks: int
    bare_mape: float

    def to_mapping(self) -> dict[str, Any]:
        """What a table's header keeps."""
        rounded = {name: round(value, 6) for name, value in vars(self).items() if isinstance(value, float)}
        return {"form": self.form, "networks": self.networks, **rounded}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Correction:
        """A correction from a header.

        Raises:
            TableError: naming the field that is missing or no number.
        """
        values: dict[str, Any] = {}
        for name in cls.__dataclass_fields__:
            value = mapping.get(name)
            right = isinstance(value, str) if name == "form" else isinstance(value, (int, float)) and value == value
            if not right or isinstance(value, bool):
                raise TableError(f"correction.{name} is {value!r}; fit it again with `nas profile SPACE --networks 20`")
            values[name] = value
        return cls(**values)


def fit_correction(sums_ms: Sequence[float], measured_ms: Sequence[float], layers: Sequence[int]) -> Correction:
    """The simplest correction whose left-out error cannot be told from the best one's (one-standard-error rule).

    Args:
        sums_ms: bare sums of N whole networks. measured_ms: what they took. layers: their numbers of layers.

    Raises:
        TableError: with fewer than ``MIN_NETWORKS``, or latencies that are no positive numbers.
    """
    sums, truth, count = (np.asarray(values, dtype=np.float64) for values in (sums_ms, measured_ms, layers))
    if len(sums) < MIN_NETWORKS:
        raise TableError(f"a correction needs {MIN_NETWORKS} whole networks or more, got {len(sums)}; measure more")
    if not (np.all(np.isfinite(sums) & (sums > 0)) and np.all(np.isfinite(truth) & (truth > 0))):
        raise TableError("a correction needs latencies over 0; measure the whole networks again")
    left_out = {form: np.abs(_left_out(form, sums, truth, count)) for form in FORMS}
    means = {form: float(errors.mean()) for form, errors in left_out.items()}
    best = min(FORMS, key=lambda form: means[form])
    tolerance = float(left_out[best].std(ddof=1)) / math.sqrt(len(sums))
    form = next(form for form in FORMS if means[form] <= means[best] + tolerance)
    offset, scale, per_layer = _fit(form, sums, truth, count)
    errors = left_out[form]
    worst, width = float(errors.max()), interval_of(errors, free=max(map(len, FORMS.values())))
    return Correction(form, offset, scale, per_layer, means[form], worst, width, len(errors), means["none"])


def interval_of(errors: Sequence[float] | Floats, free: int = 0) -> float:
    """Half the width of the interval around a prediction that holds 90% of networks like those of the errors.

    The wider of two: the ceil(0.9 (n + 1))-th smallest absolute error, or the largest where there are fewer than nine
    (conformal prediction, Vovk et al. 2005); and Student's t times the root mean square error, with as many degrees of
    freedom as ``free`` parameters leave, widened by sqrt(1 + free/n), as a new network is a guess of its own. The first
    alone covers 87% of new networks with 8 and 90% with 10, as the errors of a form that was chosen by them are a
    little too small; see benchmarks/calibration.py.

    Args:
        errors: relative errors of n networks. free: parameters that were fitted, or could have been.
    """
    ordered = np.sort(np.abs(np.asarray(errors, dtype=np.float64)))
    count = len(ordered)
    ranked = float(ordered[min(count, math.ceil(COVERAGE * (count + 1))) - 1])
    size = math.sqrt(float(np.mean(ordered**2)) * (1 + max(free, 1) / count))
    return max(ranked, student_t(max(count - free, 1)) * size)


def student_t(freedom: int) -> float:
    """The 95% point of Student's t: 90% of it lies within plus and minus this.

    Source: the expansion around the normal quantile, Abramowitz and Stegun, Handbook of Mathematical Functions (1964),
    26.7.5.

    >>> round(student_t(5), 2), round(student_t(20), 3)
    (2.01, 1.725)
    """
    z = NormalDist().inv_cdf((1 + COVERAGE) / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def _fit(form: str, sums: Floats, truth: Floats, layers: Floats) -> tuple[float, float, float]:
    """(offset_ms, scale, per_layer_ms) with the least squared relative error."""
    free = FORMS[form]
    if not free:
        return 0.0, 1.0, 0.0
    columns = {"scale": sums, "offset": np.ones_like(sums), "per_layer": layers}
    design = np.stack([columns[name] / truth for name in free], axis=1)
    solution, *_ = np.linalg.lstsq(design, np.ones(len(truth)), rcond=None)
    found = dict(zip(free, (float(value) for value in solution), strict=True))
    return found.get("offset", 0.0), found.get("scale", 1.0), found.get("per_layer", 0.0)


def _left_out(form: str, sums: Floats, truth: Floats, layers: Floats) -> Floats:
    """Relative error of each network, predicted by a fit on the others."""
    errors = np.empty(len(sums))
    for i in range(len(sums)):
        rest = np.arange(len(sums)) != i
        offset, scale, per_layer = _fit(form, sums[rest], truth[rest], layers[rest])
        errors[i] = (offset + scale * sums[i] + per_layer * layers[i]) / truth[i] - 1.0
    return errors
