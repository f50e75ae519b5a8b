"""Which choices a supernet holds: all of its space, or those that some arrangement within a budget can have."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from nas.errors import NasError
from search_spaces.arrangement import Arrangement
from search_spaces.planning import load_plan
from search_spaces.space import Space
from search_spaces.variant import Variant

#: Position -> of each slot, the variants that are held there. What is no key holds everything.
Held = Mapping[str, Sequence[Collection[Variant]]]

FACT = "held"  # in a checkpoint: the labels of what is held, where that is not everything


def whole(space: Space) -> Held:
    """Everything of the space."""
    return {position.name: [position.variants] * position.most for position in space.positions}


def to_json(held: Held) -> dict[str, list[list[str]]]:
    """Labels, in order."""
    return {name: [sorted(variant.label for variant in some) for some in slots] for name, slots in held.items()}


def from_json(space: Space, data: Any) -> Held:
    """The inverse.

    Raises:
        NasError: if it names what the space does not have.
    """
    found: dict[str, list[list[Variant]]] = {}
    try:
        for position in space.positions:
            known = {variant.label: variant for variant in position.variants}
            found[position.name] = [[known[label] for label in labels] for labels in data[position.name]]
            if len(found[position.name]) != position.most:
                raise KeyError(position.name)
    except (KeyError, TypeError) as error:
        raise NasError(
            f"a checkpoint holds choices that {space.name} does not have ({error}); give another --out"
        ) from None
    return found


def holds(held: Held, arrangement: Arrangement) -> bool:
    """Whether all layers of an arrangement are held."""
    return all(
        variant in held[name][slot] for name, variants in arrangement.layers for slot, variant in enumerate(variants)
    )


def sentence(space: Space, held: Held) -> str | None:
    """What is left out, for the start of a training; None where nothing is."""
    gone = {
        name: [v.label for v in space.position(name).variants if not any(v in some for some in slots)]
        for name, slots in held.items()
    }
    layers = sum(len(set(space.position(name).variants)) * len(slots) for name, slots in held.items())
    kept = sum(len(some) for slots in held.values() for some in slots)
    if kept == layers:
        return None
    named = [f"{name}: {', '.join(labels)}" for name, labels in gone.items() if labels]
    shown = "; ".join(named[:3]) + ("; ..." if len(named) > 3 else "")
    nowhere = f" (in no slot of {shown})" if named else ""
    left_out = f"{layers - kept} of {layers} layers are neither held nor trained"
    return f"{left_out}, as nothing within the budget has them{nowhere}"


def deepest(space: Space, held: Held | None) -> Arrangement:
    """The arrangement with most parameters of what is held, within a budget or not."""
    plan = load_plan(space)
    if held is None:
        return plan.largest()
    layers = []
    for position in space.positions:
        chosen: list[Variant] = []
        for some in held[position.name]:
            if not some:
                break
            chosen.append(max(sorted(some), key=lambda v: plan.layer(position.name, v).parameters))
        layers.append((position.name, tuple(chosen)))
    return Arrangement(space.name, tuple(layers))
