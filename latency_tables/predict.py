"""What one arrangement costs on a device, with the interval that the table's evidence allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latency_tables.budget import Budget, Infeasible, nearest
from latency_tables.cost import CostModel
from latency_tables.errors import TableError
from latency_tables.table import Table
from search_spaces.arrangement import Arrangement
from search_spaces.plan import Plan
from search_spaces.reading import parse_json, read_text


@dataclass(frozen=True)
class Prediction:
    """One arrangement's costs.

    Attributes:
        arrangement: ``{position: labels}``, every position included.
        latency_ms, latency_low_ms, latency_high_ms: the sum, and the interval around it.
        source, audit: where the rows come from, and how far sums were off on whole networks.
        breakdown: the rows of ``CostModel.breakdown``.
        fits: whether the budget holds with the margin kept; ``None`` without a budget.
        violations: limit -> fraction by which it is missed (zero or less: met).
        infeasible: why no arrangement meets the budget, if none does.
    """

    space: str
    device: str
    runtime: str
    arrangement: dict[str, tuple[str, ...]]
    latency_ms: float
    latency_low_ms: float
    latency_high_ms: float
    weights_mb: float
    activation_peak_mb: float
    peak_mb: float
    parameters: int
    source: str
    audit: str
    breakdown: list[dict[str, Any]]
    fits: bool | None
    violations: dict[str, float]
    infeasible: Infeasible | None


def predict(model: CostModel, arrangement: Mapping[str, Sequence[str]], budget: Budget | None = None) -> Prediction:
    """Cost an arrangement, and hold it to a budget with the table's margin.

    Raises:
        TableError: if the plan does not offer the arrangement.
    """
    indices = model.encode(arrangement)
    costs = model.cost(indices[None])
    latency = float(costs.latency_ms[0])
    low, high = model.audit.interval(latency)
    fits, violations, infeasible = None, {}, None
    if budget is not None and budget.given:
        held = budget.held(model.audit.margin)
        fits = bool(held.feasible(costs)[0])
        violations = {name: float(values[0]) for name, values in held.violations(costs).items()}
        infeasible = None if fits else nearest(model, held)
    return Prediction(
        model.plan.space,
        model.header.device,
        model.header.runtime,
        model.decode(indices),
        latency,
        low,
        high,
        float(costs.weights_mb[0]),
        float(costs.activation_peak_mb[0]),
        float(costs.peak_mb[0]),
        int(costs.parameters[0]),
        model.source,
        model.audit.sentence,
        model.breakdown(indices),
        fits,
        violations,
        infeasible,
    )


@dataclass(frozen=True)
class VideoTime:
    """The time of a whole video: text encoder + steps x network + decoder, in ms.

    Attributes:
        evaluations: of the network: steps, twice as many with guidance.
        text_encoder_ms, decoder_ms: all their calls; zero where the space has none, ``None`` where the table lacks it.
        missing: workload keys without a number.
        unlike: workload keys whose row is of another source than the network's, such as an estimate beside
            measurements, with that source.
    """

    evaluations: int
    network_ms: float
    text_encoder_ms: float | None
    decoder_ms: float | None
    missing: tuple[str, ...]
    unlike: tuple[str, ...] = ()

    @property
    def total_ms(self) -> float | None:
        """All three; ``None`` while one is unknown."""
        if self.text_encoder_ms is None or self.decoder_ms is None:
            return None
        return self.network_ms + self.text_encoder_ms + self.decoder_ms


def video_time(model: CostModel, table: Table, latency_ms: float, steps: int, guidance: bool = False) -> VideoTime:
    """What a video takes of ``steps`` evaluations at ``latency_ms`` each; guidance evaluates, and encodes, twice.

    Raises:
        TableError: on fewer steps than one.
    """
    if steps < 1:
        raise TableError(f"--steps must be 1 or more, but is {steps}")
    times = 2 if guidance else 1
    parts: list[float | None] = []
    missing, unlike = [], []
    for end, repeats in ((model.plan.text_encoder, times), (model.plan.decoder, 1)):
        row = table.get(f"{end.workload}@{model.precision}") if end else None
        if end is None:
            parts.append(0.0)
        elif row is None or row.latency_ms_median is None:
            parts.append(None)
            missing.append(f"{end.workload}@{model.precision}")
        else:
            parts.append(row.latency_ms_median * end.calls * repeats)
            if row.source not in model.sources:
                unlike.append(f"{row.key} ({row.source})")
    return VideoTime(steps * times, steps * times * latency_ms, parts[0], parts[1], tuple(missing), tuple(unlike))


def with_decoder(video: VideoTime, model: CostModel, table: Table, folder: Path) -> VideoTime:
    """The same video through a searched decoder, costed from the same table.

    Args:
        folder: what ``nas distil-decoder`` or ``nas build`` wrote: an arrangement, and beside it its space's plan.

    Raises:
        TableError: if the folder holds none, it makes other frames than the video's, or the table lacks its rows.
    """
    try:
        told = parse_json(read_text(folder / "config.json"))
        plan, chosen = Plan.load(folder / "plan.json"), Arrangement.from_json(told["arrangement"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TableError(
            f"{folder}: holds no searched decoder ({error}); give the folder that nas distil-decoder wrote"
        ) from None
    sizes = ("frames", "height", "width")
    made, wanted = (tuple(one.clip[name] for name in sizes) for one in (plan, model.plan))
    if made != wanted:
        raise TableError(
            f"{folder}: is costed at {'x'.join(map(str, made))}, but {model.plan.space} makes "
            f"{'x'.join(map(str, wanted))}; write its space's deployment clip so"
        )
    costs = CostModel(plan, table, allow_mixed=True)
    latency = float(costs.cost(costs.encode(chosen.labels())[None]).latency_ms[0])
    ours = plan.backbone_workload
    kept = tuple(key for key in video.missing if not key.startswith("decoder:"))
    unlike = tuple(key for key in video.unlike if not key.startswith("decoder:"))
    unlike += (f"{ours} ({costs.source})",) if set(costs.sources) - set(model.sources) else ()
    return replace(video, decoder_ms=latency, missing=kept, unlike=unlike)


def parse_layers(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """``["down.0.0=Conv1D(kernel_size=3) + Conv3D(kernel_size=3)"]`` as ``{position: labels}``.

    Raises:
        TableError: on text without ``=``.
    """
    found = {}
    for text in texts:
        position, equals, labels = text.partition("=")
        if not equals or not position.strip():
            raise TableError(
                f"--layers {text!r}: write POSITION=LABEL + LABEL, such as 'down.0.0=Conv1D(kernel_size=3)'"
            )
        found[position.strip()] = tuple(label.strip() for label in labels.split("+") if label.strip())
    return found
