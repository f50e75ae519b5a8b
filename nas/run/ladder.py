"""A ladder measured, on a run's supernet and table or on a device's table alone; and every string of letters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from nas.config import CONFIG_FILE, SUPERNET, load, with_search
from nas.errors import NasError
from nas.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nas.search.ladder import Measured
    from nas.search.letters import Finding


def climb(where: Path, ladder: str, device: str | None, tables: Path | None, sets: Sequence[str] = ()) -> Measured:
    """Measure a ladder and, of a run, write ``ladder-NAME.json`` and ``.svg`` into it.

    Args:
        where: a run folder, whose supernet gives the losses and whose table the costs; or a space, by name or YAML.
        device, tables: of a space: whose table, and the folder that holds it.

    Raises:
        NasError: if the ladder does not fit the space, or a table is missing.
    """
    from device_profiler.device import Device
    from nas.run.costs import cost_model, load_table
    from nas.search.ladder import measure, read_ladder
    from search_spaces.space import Space

    wanted = read_ladder(ladder)
    if (where / CONFIG_FILE).is_file():
        if device is not None or tables is not None:
            raise NasError(f"{where} is a run, which has its own device and table; leave --device and --table out")
        config = with_search(load(where), sets)
        space, target, folder = Space.load(config.space), Device.load(config.device), where / "table"
        trained = (where / SUPERNET).is_dir()
    else:
        if device is None:
            raise NasError(f"--ladder of the space {where} needs --device; or give a run folder")
        if sets:
            raise NasError(f"--set {sets[0]}: of a space, a ladder has no settings; give a run folder, or leave it out")
        space, target, folder, trained = Space.load(str(where)), Device.load(device), tables or Path("tables"), False
    costs = cost_model(space, load_table(target, folder), allow_mixed=True)
    scorer = None
    if trained:
        from nas.ranking.scores import open_scorer

        scorer = open_scorer(config, where)[0]
    measured = measure(wanted, space, costs, target.name, scorer)
    if (where / CONFIG_FILE).is_file():
        from nas.report.ladder import ladder_svg

        write_whole(where / f"ladder-{wanted.name}.json", json.dumps(measured.to_json(), indent=1))
        write_whole(where / f"ladder-{wanted.name}.svg", ladder_svg(measured))
    return measured


def rank_letters(run: Path) -> Finding:
    """Every string of a run's space costed by its table and scored by its supernet; see ``nas.search.letters``.

    Raises:
        NasError: if the run has no supernet or table.
    """
    from device_profiler.device import Device
    from nas.console import progress
    from nas.ranking.scores import open_scorer
    from nas.run.costs import cost_model, load_table
    from nas.search.letters import find
    from search_spaces.space import Space

    config = load(run)
    space = Space.load(config.space)
    costs = cost_model(space, load_table(Device.load(config.device), run / "table"), allow_mixed=True)
    scorer = open_scorer(config, run)[0]
    with progress("letters") as report:
        found = find(space, costs, lambda arrangement: scorer.score(arrangement).loss, report)
    write_whole(run / "letters.json", json.dumps(found.to_json(), indent=1))
    return found
