"""How far two orders of the same things agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def kendall_tau(first: Sequence[float] | NDArray[Any], second: Sequence[float] | NDArray[Any]) -> float:
    """Kendall's tau-b, -1 to 1; not a number for fewer than two things, or if one side is all ties. Needs scipy."""
    from scipy.stats import kendalltau

    return float(kendalltau(first, second).statistic) if len(first) > 1 else float(np.nan)
