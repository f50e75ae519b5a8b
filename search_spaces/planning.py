"""The plan of a space: the committed one, the one kept beside a YAML, or one that is computed."""

from __future__ import annotations

from pathlib import Path

from search_spaces.errors import SpaceError
from search_spaces.plan import SPACES, Plan
from search_spaces.space import Space, list_spaces


def load_plan(space: str | Path | Space) -> Plan:
    """The plan of a space: the committed one, the one cached beside a user's YAML, or (with torch) a new one.

    A new plan of a user's space is written as ``<name>.plan.json`` beside the YAML, where the folder allows it.

    Raises:
        SpaceError: if the space is wrong, or a committed plan does not fit its space.
    """
    space = Space.load(space)
    if space.source is None:
        shipped = Space.load(space.name) if space.name in list_spaces() else None
        if shipped is not None and shipped.fingerprint == space.fingerprint:
            return load_plan(shipped)
        return compute(space)
    path = plan_path(space)
    if path.exists():
        plan = Plan.load(path)
        if plan.fingerprint == space.fingerprint:
            return plan
        if path.parent == SPACES:
            raise SpaceError(
                f"{path.name} was computed from definition {plan.fingerprint}, but {space.name}.yaml is "
                f"{space.fingerprint}; run python -m search_spaces.planning"
            )
    plan = compute(space)
    try:
        plan.save(path)
    except OSError:
        pass  # a read-only folder costs the next call some seconds, nothing else
    return plan


def plan_path(space: Space) -> Path:
    """Where the plan of a loaded space lies: beside its YAML."""
    if space.source is None:
        raise SpaceError(f"space {space.name} was not loaded from a file, so its plan has no place")
    return space.source.with_name(f"{space.source.stem}.plan.json")


def compute(space: Space) -> Plan:
    """Compute a plan from the real modules on torch's meta device: shapes and counts, no weights, no memory.

    Raises:
        SpaceError: naming the space, if its frame refuses the configuration or is not what its layout promises.
    """
    from search_spaces.trace import trace_plan

    try:
        return trace_plan(space)
    except SpaceError as error:
        raise SpaceError(f"{space.name}: {error}") from error


def main() -> None:
    """Rewrite the committed plan of every space of the package."""
    for name in list_spaces():
        space = Space.load(name)
        path = compute(space).save(plan_path(space))
        print(f"{path} {space.fingerprint}")


if __name__ == "__main__":
    main()
