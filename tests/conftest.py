"""Before any test is collected: threads that share the machine, as those of the product's own processes do.

And what several files export: one small model, once a session.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from device_profiler.threads import share_cores

share_cores()


@pytest.fixture(scope="session")
def exported_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of the tiny space, with random weights."""
    from export_fixtures import save_model

    return save_model(tmp_path_factory.mktemp("export") / "model")


@pytest.fixture(scope="session")
def exported(exported_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Its packages at the smallest clip, and what the export told. Not to be changed."""
    from export_fixtures import SMALL

    from nas.export import export_model

    out = tmp_path_factory.mktemp("plain") / "coreml"
    return out, export_model(exported_model, out, shapes=[SMALL])
