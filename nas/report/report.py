"""The report: from a run folder to one HTML page that opens offline, with every number saying where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from latency_tables.report.page import render_page, write_page
from nas.evaluate import APART
from nas.report.drawing import FAMILIES, brief, network_svg
from nas.report.figures import curve_figure, front_figure
from nas.report.folder import KINDS, Row, RunFolder, as_mapping, read_run
from nas.report.measured import disturbed_sentence, measurement
from nas.report.searching import growth_figure, positions_figure, reasons
from nas.report.strips import animated_strip, sheet, still
from nas.report.texts import (
    count_text,
    facts,
    inline,
    latency_of,
    listed,
    loss_of,
    loss_text,
    mb,
    ms,
    number,
    percent,
    seconds_text,
    value_of,
)
from nas.report.tuned import tuned_rows

HERE = Path(__file__).parent
FILE = "report.html"

KIND_NAMES = {
    "real": "real",
    "noised": "noised",
    "one_step": "one step",
    "sampled": "sampled",
    "rebuilt": "encoded and decoded",
}


def write_report(run_dir: Path | str) -> Path:
    """Write ``RUN/report.html`` from whatever the run folder holds, and return its path.

    The page is one file without references to anything outside it. A part whose files are missing is a sentence that
    says which command writes them. Costs from estimated rows are called estimated wherever they are shown.

    Raises:
        NasError: if the folder does not exist or holds nothing of a run.
    """
    run = read_run(Path(run_dir))
    return write_page(run.path / FILE, render_what_can_be(run))


# What a page is made of, piece by piece, with what stands in the place of one that cannot be shown.
PIECES: Mapping[str, tuple[str, Any]] = {
    "explained": ("explain.json", {}),
    "samples": ("samples/samples.npz", None),
    "curves": ("supernet/metrics.jsonl", ()),
    "front": ("front.csv", ()),
    "arrangement": ("arrangement.yaml", None),
    "plan": ("the space's plan", None),
    "headers": ("table", ()),
    "metrics": ("metrics.json", {}),
}


def render_what_can_be(run: RunFolder) -> str:
    """The page; of pieces that were read and still cannot be shown, a sentence each.

    Files come from other versions, other hands and broken disks: keys are missing in them, texts stand where numbers
    should. Whatever a piece holds, the others are shown.
    """
    try:
        return render(run)
    except Exception as error:  # looked for below: whose fault it is
        fault = error
    for name in PIECES:
        try:
            return render(_without(run, (name,), fault))
        except Exception:  # noqa: S112 - it was not this piece, or not it alone
            continue
    return render(_without(run, tuple(PIECES), fault))


def _without(run: RunFolder, names: Sequence[str], fault: Exception) -> RunFolder:
    reason = " ".join(f"{type(fault).__name__}: {fault}".split())[:200]
    told = {name: f"{PIECES[name][0]} holds what cannot be shown ({reason}); write it again." for name in names}
    told = {("table" if name == "headers" else name): sentence for name, sentence in told.items()}
    return replace(run, **{name: PIECES[name][1] for name in names}, missing={**run.missing, **told})


def render(run: RunFolder) -> str:
    """The page as text."""
    chosen = next((row for row in run.front if row.chosen), None)
    return render_page(
        HERE,
        "report.html.j2",
        _figures(run),
        {"ms": ms, "mb": mb, "loss": loss_text, "count": count_text, "percent": percent, "brief": brief},
        run=run,
        metrics=run.metrics,
        chosen=chosen,
        title=f"{run.plan.space if run.plan else run.metrics.get('space', run.path.name)} on {_device(run)}",
        verdict=verdict(run),
        tiles=_tiles(run),
        source=run.sources.word,
        estimate_notice=_estimate_notice(run),
        front_rows=sorted((row for row in run.front if row.on_front or row.is_baseline), key=latency_of),
        tally=_tally(run.front),
        why=_why(run),
        reasons=reasons(run.explained),
        drawings=_drawings(run),
        families=_families(run),
        lettered=any(kind != "other" for kind, _ in _families(run)),
        breakdown=_breakdown(run),
        comparison=_comparison(run),
        drift=_drift(run),
        disturbed=disturbed_sentence(as_mapping(run.metrics.get("chosen"))),
        clips=_clips(run),
        rebuilt=bool(run.samples and "rebuilt" in run.samples.clips),
        kinds=[KIND_NAMES[kind] for kind in KINDS if run.samples and kind in run.samples.clips],
        provenance=_provenance(run),
        timings=_timings(run),
        coreml=facts(run.metrics.get("coreml")),
        evaluation=_evaluation(as_mapping(run.metrics.get("evaluation"))),
        tuned=tuned_rows(run.path),
    )


# What the page says --------------------------------------------------------------------------------


def verdict(run: RunFolder) -> str:
    """One or two sentences: which layers where, what they cost on this device, and what they are worth."""
    if run.arrangement is None:
        return "No arrangement has been chosen yet."
    places: dict[str, list[str]] = {}
    for name, variants in run.arrangement.layers:
        if variants:
            texts = [(brief(variant.label), len(list(same))) for variant, same in groupby(variants)]
            places.setdefault(" then ".join(t if n == 1 else f"{n} × {t}" for t, n in texts), []).append(name)
    parts = [f"{text} at {listed(names)}" for text, names in places.items()]
    everywhere = all(variants for _, variants in run.arrangement.layers)
    verb = "Choose" if run.words.choice else "Put"
    sentences = [f"{verb} {', '.join(parts)}{'.' if everywhere else ', and nothing elsewhere.'}"]
    if not parts:
        sentences = [f"Put {run.words.none} anywhere."]
    chosen, baseline = as_mapping(run.metrics.get("chosen")), as_mapping(run.metrics.get("baseline"))
    latency, method = measurement(chosen, "latency_ms")
    backbone, _ = measurement(chosen, "backbone_latency_ms")
    if latency is None:
        latency, method, backbone = value_of(chosen, "latency_ms_predicted"), _predicted(run), None
    if latency is not None:
        if backbone is None:
            backbone = value_of(chosen, "backbone_latency_ms")
        share = "" if backbone is None else f", {ms(backbone)} of it the backbone"
        peak, peak_method = measurement(chosen, "peak_mb")
        if peak is None:
            peak, peak_method = value_of(chosen, "peak_mb_predicted"), _predicted(run)
        how = method if method == peak_method or peak is None else f"latency {method}, memory {peak_method}"
        memory = "" if peak is None else f" and peaks at {mb(peak)}"
        sentences.append(f"One evaluation on {_device(run)} takes {ms(latency)}{share}{memory} ({how}).")
    loss, without = value_of(chosen, "loss"), value_of(baseline, "loss")
    if loss is not None and without:
        change = (without - loss) / without
        better = f"{percent(abs(change))} {'below' if change >= 0 else 'above'}"
        gain, doubt = value_of(baseline, "gain"), value_of(baseline, "gain_stderr")
        paired = chance = ""
        if gain is not None and doubt is not None:
            paired = f"; on the same clips and noise the difference is {abs(gain):.4f} ± {doubt:.4f}"
            chance = ", too little to tell from chance" if abs(gain) < 2 * doubt else ""
        rest = f"{better} the {loss_text(without)} {run.words.beside}{paired}{chance}"
        sentences.append(f"Its validation loss is {loss_text(loss)}, {rest}.")
    return " ".join(sentences)


def _predicted(run: RunFolder) -> str:
    word = run.sources.word
    return "predicted" if word in ("measured", "") else f"predicted from {word} rows"


def _estimate_notice(run: RunFolder) -> str:
    counts = run.sources.counts
    if run.sources.word in ("", "measured"):
        return ""
    total = sum(counts.values())
    parts = [f"{count} are {name}" for name, count in counts.items() if name != "measured"]
    return f"Of the table's {total} usable rows, {listed(parts)}: not measured here. Costs below rest on them."


def _device(run: RunFolder) -> str:
    header = run.headers[0] if run.headers else {}
    return str(run.metrics.get("device") or header.get("device") or "an unknown device")


def _tiles(run: RunFolder) -> list[dict[str, Any]]:
    """The four numbers to remember, each with what it is held against; ``fill`` is its share of the budget."""
    chosen, baseline = as_mapping(run.metrics.get("chosen")), as_mapping(run.metrics.get("baseline"))
    budget, held = (as_mapping(run.metrics.get(name)) for name in ("budget", "held"))
    tiles = []
    for name, column, unit in (("Latency", "latency_ms", ms), ("Peak memory", "peak_mb", mb)):
        value, how = measurement(chosen, column)
        is_predicted = value is None
        if value is None:
            value, how = value_of(chosen, f"{column}_predicted"), _predicted(run)
        limit = value_of(budget, "latency_ms" if column == "latency_ms" else "memory_mb")
        if value is not None:
            note = f"{how}; budget {unit(limit)}" if limit else f"{how}; no budget"
            kept = value_of(held, "latency_ms") if column == "latency_ms" and is_predicted else None
            if limit and kept and kept < limit:
                note += f", held to {unit(kept)}"
            fill = None if not limit else value / limit
            tiles.append({"name": name, "value": unit(value), "note": note, "fill": fill})
    loss, without = value_of(chosen, "loss"), value_of(baseline, "loss")
    if loss is not None:
        note = "lower is better" if without is None else f"{loss_text(without)} {run.words.beside}"
        tiles.append({"name": "Validation loss", "value": loss_text(loss), "note": note, "fill": None})
    parameters = value_of(chosen, "parameters")
    if parameters is not None:
        tiles.append({"name": "Parameters", "value": count_text(parameters), "note": "whole network", "fill": None})
    return tiles


def _tally(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    front = [row for row in rows if row.on_front]
    feasible = sum(row.feasible for row in rows)
    stopped = sum(row.is_pruned for row in rows)
    early = f" {stopped} were clearly beaten on the first clips and stopped there." if stopped else ""
    return f"{len(rows)} arrangements evaluated, {feasible} within the budget, {len(front)} on the front.{early}"


def _why(run: RunFolder) -> str:
    """Why the chosen one: the search's own words, or else how it compares with the lowest loss on the front."""
    said = as_mapping(run.metrics.get("search")).get("sentence")
    if isinstance(said, str) and said:
        return f"{said[:1].upper()}{said[1:].rstrip('.')}."
    chosen = next((row for row in run.front if row.chosen), None)
    best = min((row for row in run.front if row.on_front), key=loss_of, default=None)
    if chosen is None or best is None or chosen["loss"] is None or best["loss"] is None or best.key == chosen.key:
        return ""
    less, more = chosen["loss"] - best["loss"], latency_of(best) - latency_of(chosen)
    return f"The lowest loss on the front is {less:.4f} below the chosen one's and costs {ms(more)} more."


# Parts of the page ---------------------------------------------------------------------------------


def _figures(run: RunFolder) -> dict[str, Any]:
    figures = {}
    if run.front:
        budget, held = (as_mapping(run.metrics.get(name)) for name in ("budget", "held"))
        figures["front"] = front_figure(run.front, budget, held, run.sources.word, run.words)
        figures["growth"] = growth_figure(run.front)
        figures["positions"] = positions_figure(run.front)
    if run.curves:
        losses = {"loss_video": "video", "loss_image": "images"}
        if not any(isinstance(row.get(name), int | float) for row in run.curves for name in losses):
            losses = {"loss": "loss"}
        figures["loss"] = curve_figure(run.curves, losses, "training loss")
        figures["rate"] = curve_figure(run.curves, {"learning_rate": "learning rate"}, "learning rate")
        figures["gradient"] = curve_figure(run.curves, {"grad_norm": "gradient norm"}, "gradient norm")
    return {name: figure for name, figure in figures.items() if figure["data"]}


def _drawings(run: RunFolder) -> dict[str, Markup]:
    if run.arrangement is None:
        return {}
    costs = {}
    for row in _breakdown(run)["rows"]:
        if row["latency_ms"] is not None and row["layers"]:
            costs[row["position"]] = (
                f"{ms(row['latency_ms'])} est." if row["estimated"] else f"+{ms(row['latency_ms'])}"
            )
    layers = [(name, [variant.label for variant in variants]) for name, variants in run.arrangement.layers]
    title = f"The chosen arrangement on its network. {verdict(run)}"
    return {
        name: Markup(network_svg(run.plan, layers, costs, width=width, title=title))  # noqa: S704 - escaped where made
        for name, width in (("wide", 860), ("narrow", 352))
    }


def _families(run: RunFolder) -> list[tuple[str, str]]:
    """(colour's class, name) of the blocks in the drawing, for its legend; those of other packages share a colour."""
    if run.arrangement is None:
        return []
    found = {variant.block for _, variants in run.arrangement.layers for variant in variants}
    others = sorted(found - set(FAMILIES))
    return [(name, name) for name in FAMILIES if name in found] + ([("other", ", ".join(others))] if others else [])


def _breakdown(run: RunFolder) -> dict[str, Any]:
    """Rows of where milliseconds and megabytes go, with each bar's share of its column's largest value."""
    columns = ("latency_ms", "weights_mb", "point_peak_mb")
    workloads = {
        (position.name, layer.label): layer.workload
        for position in (run.plan.positions if run.plan else ())
        for layer in position.layers
    }
    if run.plan:
        workloads["backbone", ""] = run.plan.backbone_workload
    rows: list[dict[str, Any]] = []
    for entry in run.metrics.get("breakdown") or ():
        if not isinstance(entry, Mapping):
            continue
        position, layers = str(entry.get("position", "")), [str(label) for label in entry.get("layers") or ()]
        keys = [workloads.get((position, label), "") for label in layers or ([""] if position == "backbone" else [])]
        found = {run.sources.by_workload.get(key, "measured") for key in keys}
        row: dict[str, Any] = {"position": position, "layers": layers, "is_peak": bool(entry.get("is_peak"))}
        row |= {name: value_of(entry, name) for name in columns}
        row["estimated"] = bool(found - {"measured"})
        rows.append(row)
    for name in columns:
        largest = max((row[name] for row in rows if row[name] is not None), default=0.0)
        for row in rows:
            row[f"{name}_share"] = (row[name] or 0.0) / largest if largest else 0.0
    totals = {name: sum(row[name] or 0.0 for row in rows) for name in ("latency_ms", "weights_mb")}
    peak = max((row["point_peak_mb"] or 0.0 for row in rows), default=0.0)
    return {"rows": rows, "totals": totals, "peak": peak, "whole": totals["weights_mb"] + peak}


def _comparison(run: RunFolder) -> list[dict[str, Any]]:
    """Predicted against measured for the chosen network, built and run whole."""
    chosen = as_mapping(run.metrics.get("chosen"))
    rows = []
    for name, column, unit in (("latency", "latency_ms", ms), ("peak memory", "peak_mb", mb)):
        predicted, (measured, how) = value_of(chosen, f"{column}_predicted"), measurement(chosen, column)
        if predicted is None and measured is None:
            continue
        error = None if predicted is None or not measured else (predicted - measured) / measured
        largest = max(predicted or 0.0, measured or 0.0)
        rows.append(
            {
                "name": name,
                "predicted": unit(predicted),
                "measured": unit(measured),
                "how": how if how == "estimated" else "measured" if how in ("", "measured") else "adjusted",
                "error": "unknown" if error is None else f"{100 * error:+.1f}%",
                "bars": [(predicted or 0.0) / largest, (measured or 0.0) / largest] if largest else [0.0, 0.0],
            }
        )
    return rows


def _drift(run: RunFolder) -> str | None:
    """How the machine's speed changed between the table and the comparison, by the backbone timed in both.

    The comparison runs minutes after the table was measured; neighbours and clocks move whole runs meanwhile, and
    without this sentence that would read as an error of the sum.
    """
    chosen = as_mapping(run.metrics.get("chosen"))
    names = ("latency_ms_predicted", "latency_ms_measured", "backbone_latency_ms", "backbone_latency_ms_measured")
    predicted, measured, before, now = (value_of(chosen, name) for name in names)
    if not (predicted and measured and before and now):
        return None
    error = predicted * now / before / measured - 1
    return (
        f"The bare backbone, timed again in the same rounds, took {ms(now)} where the table has {ms(before)} "
        f"({100 * (now / before - 1):+.1f}%): the machine's speed changed in between. With the sum scaled by that, "
        f"latency is off by {100 * error:+.1f}%."
    )


def _clips(run: RunFolder) -> list[dict[str, Any]]:
    if run.samples is None:
        return []
    clips = run.samples.clips
    shown = []
    for index, caption in enumerate(run.samples.captions):
        own = [clips[kind][index] for kind in KINDS if kind in clips]
        strip = {"caption": caption, "strip": animated_strip(own, run.fps), "still": still(own), "sheet": sheet(own)}
        shown.append(strip)
    return shown


def _evaluation(told: Mapping[str, Any]) -> dict[str, list[tuple[str, ...]]]:
    """What nas evaluate measured: rows of (measure, value, what to read it beside), and facts."""
    rows: list[tuple[str, ...]] = []
    for objects, found in sorted(as_mapping(told.get("prompts")).items()):
        row = as_mapping(found)
        value, chance = value_of(row, "accuracy"), value_of(row, "chance")
        if value is not None:
            parts = [
                f"{name} {100 * part:.1f}%"
                for name in ("kind", "colour", "direction")
                if (part := value_of(row, name)) is not None
            ]
            what = f"prompts of {objects} object{'' if objects == '1' else 's'} shown as asked"
            beside = "" if chance is None else f"{100 * chance:.2f}% by guessing"
            rows.append((what, f"{100 * value:.1f}% ({', '.join(parts)})" if parts else f"{100 * value:.1f}%", beside))
    distance = value_of(told, "frechet")
    if distance is not None:
        rows.append(("Fréchet distance", f"{distance:.3f}", f"features: {told.get('features')}"))
    for key, what in APART.items():
        if (apart := value_of(told, key)) is not None:
            rows.append((f"Fréchet distance of {what}", f"{apart:.5f}", "colours in 4x4 cells; on the same data only"))
    real = as_mapping(told.get("pixels_real"))
    for name, value in as_mapping(told.get("pixels")).items():
        if number(value) is not None:
            beside = f"{real[name]:.4f} in real clips" if number(real.get(name)) is not None else ""
            rows.append((str(name), f"{value:.4f}", beside))
    right = value_of(as_mapping(told.get("classifier")), "accuracy")
    facts: list[tuple[str, ...]] = []
    if right is not None:
        facts.append(("classifier, held-out clips right", f"{100 * right:.1f}%"))
    vbench = as_mapping(told.get("vbench"))
    scores = {
        **as_mapping(vbench.get("dimensions")),
        **{f"VBench {n}": vbench.get(n) for n in ("quality", "semantic", "total")},
    }
    facts += [
        (str(name).replace("_", " "), f"{value:.4f}") for name, value in scores.items() if number(value) is not None
    ]
    if (seconds := value_of(told, "seconds")) is not None:
        facts.append(("sampling a clip", f"{seconds:.3f} s"))
    return {"rows": rows, "facts": facts}


def _provenance(run: RunFolder) -> list[tuple[str, str]]:
    """(name, value) pairs, most asked-for first."""
    metrics = run.metrics
    pairs: list[tuple[str, Any]] = [("space", metrics.get("space")), ("device", metrics.get("device"))]
    for header in run.headers:
        names = ("chip", "os", "runtime", "runtime_version", "compute_unit", "precision", "toolkit_version")
        pairs += [(name.replace("_", " "), header[name]) for name in names if header.get(name)]
        for name in ("additivity", "reference"):
            if header.get(name):
                pairs.append((f"table's {name}", inline(header[name])))
    counts = run.sources.counts
    if counts:
        pairs.append(("table rows", listed([f"{count} {name}" for name, count in counts.items()])))
    pairs += [("machine", inline(metrics.get("machine"))), ("seeds", inline(metrics.get("seeds")))]
    pairs += [("commit", metrics.get("commit")), ("budget", inline(metrics.get("budget")))]
    pairs += [
        ("reachable", inline(metrics.get("reachable"))),
        ("arrangement", run.arrangement and run.arrangement.key),
    ]
    pairs.append(("versions", inline(metrics.get("versions"))))
    return [(name, str(value)) for name, value in pairs if value not in (None, "", "unknown")]


def _timings(run: RunFolder) -> list[dict[str, Any]]:
    known = {str(name): number(value) for name, value in as_mapping(run.metrics.get("timings")).items()}
    timings = {name: value for name, value in known.items() if value is not None}
    longest = max(timings.values(), default=0.0)
    return [
        {"name": name, "value": seconds_text(value), "share": value / longest if longest else 0.0}
        for name, value in timings.items()
    ]
