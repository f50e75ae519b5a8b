"""coremltools without its warnings and progress bars; errors still come through."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """coremltools tells of versions it was not tested with and draws progress bars; errors still come through."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.filterwarnings("ignore", module="coremltools.*|torch.*|sklearn.*|xgboost.*")
            warnings.filterwarnings("ignore", message="Implicitly cleaning up", category=ResourceWarning)
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*overflow encountered in cast.*", category=RuntimeWarning)
            yield
    finally:
        logger.setLevel(level)
