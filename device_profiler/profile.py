"""Profiling: what a table lacks is lowered, measured and written row by row; what it has is left alone."""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_profiler.device import Device
from device_profiler.errors import ProfileError
from device_profiler.wanted import Wanted, missing_rows, records_of, wanted_rows
from latency_tables.header import Header
from latency_tables.record import Record
from latency_tables.reference import with_run
from latency_tables.table import Table, table_path
from search_spaces.arrangement import Arrangement
from search_spaces.space import Space
from search_spaces.workload import Workload

if TYPE_CHECKING:
    from device_profiler.measure import OnProgress
    from device_profiler.runtimes.contract import Runtime
    from device_profiler.samples import Limits, RunLog

CACHE = ".cache"
USUAL_EMBEDDING = 1280  # width of Stable Diffusion 1.5's time embedding


def profile(
    space: str | Path | Space,
    device: str | Path | Device,
    table_dir: str | Path,
    *,
    clip: str = "deployment",
    spatial: bool = False,
    lowerings: Sequence[str] = (),
    method: str | None = None,
    retry: bool = False,
    limits: Limits | None = None,
    seed: int = 0,
    progress: OnProgress | None = None,
    cache_dir: str | Path | None = None,
) -> Table:
    """Measure what the device's table lacks of a space: its workloads, text encoder and decoder; give the table.

    Each row is on disk as soon as it is known, so stopping at any moment loses at most what was being timed; calling
    again goes on from there. With nothing to do, only the space and the table are read. Rows without a number (oom,
    unsupported, failed, timeout, wrong) are results and stay, unless ``retry`` asks to measure them again; an
    ``unstable`` one is measured again each time.

    Args:
        table_dir: the table is ``table_dir/<device>/<runtime>.csv``, raw samples beside it.
        spatial: measure the backbone's parts too, each by itself.
        lowerings: names of ``LOWERING_NAMES``, or ``all``; the device's, then the runtime's default where none are.
        method: alone, slope or in_context; the device's where none is named. Backbones are measured alone.
        seed: of the order in which workloads are visited.
        progress: told what is going on.
        cache_dir: where lowered files are kept; ``table_dir/.cache`` by default.

    Raises:
        ProfileError: unknown device, runtime, lowering or method; a tool or phone is missing.
        SpaceError, TableError: from reading the space and the table.
    """
    loaded = Space.load(space)
    target = device if isinstance(device, Device) else Device.load(device)
    workloads = (*loaded.workloads(target.precision, clip), *loaded.ends(target.precision, clip))
    if spatial:
        workloads += loaded.spatial_workloads(target.precision, clip)
    wanted = wanted_rows(workloads, target, lowerings, method)
    return _fill(wanted, target, table_dir, _origin(space, loaded), retry, limits, seed, progress, cache_dir)


def profile_workloads(
    workloads: Sequence[Workload],
    device: str | Path | Device,
    table_dir: str | Path,
    *,
    limits: Limits | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> Table:
    """Measure what the device's table lacks of any workloads of its precision, in the same rounds; give the table.

    Raises:
        ProfileError: as ``profile``.
    """
    target = device if isinstance(device, Device) else Device.load(device)
    wanted = wanted_rows(workloads, target, (), None)
    return _fill(wanted, target, table_dir, "", False, limits, seed, None, cache_dir)


def profile_operator(
    block: str,
    shape: str,
    device: str | Path | Device,
    table_dir: str | Path,
    *,
    context: str = "",
    lowerings: Sequence[str] = (),
    method: str | None = None,
    retry: bool = False,
    limits: Limits | None = None,
    seed: int = 0,
    progress: OnProgress | None = None,
    cache_dir: str | Path | None = None,
) -> tuple[Table, Workload]:
    """Measure one block at any shape, with no search in mind; gives the table and the workload whose rows it now has.

    Args:
        block: a block or a variant, ``Conv3D`` or ``Conv3D(kernel_size=5)``; parameters left out get their defaults.
        shape: ``CxTxHxW`` of its input, e.g. ``320x30x64x64``; ``CxTxHxWxB`` for another batch than 1.
        context: ``LxD`` of the text that a cross-attention block reads; 77x768 where it is left out.

    Raises:
        ProfileError: if the shape cannot be read; otherwise as ``profile``.
    """
    target = device if isinstance(device, Device) else Device.load(device)
    workload = operator_workload(block, shape, target.precision, context)
    wanted = wanted_rows([workload], target, lowerings, method)
    return _fill(wanted, target, table_dir, "", retry, limits, seed, progress, cache_dir), workload


def profile_backbone(
    space: str | Path | Space,
    device: str | Path | Device,
    table_dir: str | Path,
    *,
    retry: bool = False,
    limits: Limits | None = None,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> Record:
    """The row of a space's bare backbone, measured if the device's table lacks it; the rest of the space is left out.

    Raises:
        ProfileError: as ``profile``.
    """
    loaded = Space.load(space)
    target = device if isinstance(device, Device) else Device.load(device)
    workload = loaded.backbone_workload(target.precision)
    wanted = wanted_rows([workload], target, (), None)
    table = _fill(wanted, target, table_dir, _origin(space, loaded), retry, limits, seed, progress, None)
    row = table.get(workload.key)
    assert row is not None
    return row


def operator_workload(block: str, shape: str, precision: str, context: str = "") -> Workload:
    """The workload of one block at a stated shape; see ``profile_operator``."""
    from search_spaces.blocks import block_spec, complete
    from search_spaces.variant import Variant

    sizes = _sizes(shape, (4, 5), "shape", "CxTxHxW, for example 320x30x64x64")
    channels, frames, height, width = sizes[:4]
    variant = complete(Variant.parse(block), channels)
    reads = block_spec(variant.block).reads
    reads_text = "context" in reads
    if context and not reads_text:
        raise ProfileError(f"{variant.label} reads no text; leave the context {context!r} out.")
    tokens, dim = _sizes(context or "77x768", (2,), "context", "LxD, for example 77x768") if reads_text else (0, 0)
    return Workload(
        variant.block,
        variant.params,
        channels=channels,
        frames=frames,
        height=height,
        width=width,
        batch=sizes[4] if len(sizes) == 5 else 1,
        precision=precision,
        context_tokens=tokens,
        context_dim=dim,
        embedding_dim=USUAL_EMBEDDING if "embedding" in reads else 0,
    )


def measure_workloads(
    workloads: Iterable[Workload],
    device: str | Path | Device,
    *,
    space: str | Path | Space | None = None,
    arrangements: Mapping[str, Arrangement] | None = None,
    lowerings: Sequence[str] = (),
    method: str | Sequence[str] | None = None,
    limits: Limits | None = None,
    seed: int = 0,
    progress: OnProgress | None = None,
    cache_dir: str | Path,
    log: RunLog | None = None,
) -> list[Record]:
    """Measure any workloads together in one run, whole networks included, and give their records; no table is touched.

    Args:
        space: of backbones and networks.
        arrangements: by their ``key``, for the network workloads among ``workloads``.
        method: one, or several in the same rounds; the device's where none is named.
        log: takes raw samples and the reference workload's course; ``log.summary`` tells how quiet the machine was.

    Returns:
        Records in the order of ``workloads`` (and of lowerings and methods, where several are measured).

    Raises:
        ProfileError: as ``profile``, and if a network's arrangement is not given.
    """
    target = device if isinstance(device, Device) else Device.load(device)
    origin = _origin(space, Space.load(space)) if space is not None else ""
    asked = tuple(workloads)
    methods = (method,) if method is None or isinstance(method, str) else tuple(method)
    rows = (row for how in methods for row in wanted_rows(asked, target, lowerings, how))
    wanted = list({row.primary_key: row for row in rows}.values())
    known = arrangements or {}
    for index, row in enumerate(wanted):
        if row.workload.block == "network":
            key = row.workload.name.rpartition(":")[2].partition(".")[0]  # of a part, that of the whole
            if key not in known:
                raise ProfileError(f"{row.workload.key}: a network needs its arrangement; pass arrangements[{key!r}].")
            wanted[index] = replace(row, arrangement=known[key])
    runtime = _open(target)
    found = {
        record.primary_key: record
        for record in records_of(wanted, target, runtime, origin, limits, seed, progress, Path(cache_dir), log)
    }
    return [found[row.primary_key] for row in wanted]


def _origin(given: str | Path | Space | None, loaded: Space) -> str:
    """What a child process can load the space by: its name, or the absolute path of its YAML."""
    from search_spaces.space import list_spaces

    if isinstance(given, str) and given in list_spaces():
        return given
    if isinstance(given, (str, Path)):
        return str(Path(given).resolve())
    if loaded.source is not None:
        return str(loaded.source)
    raise ProfileError(f"space {loaded.name} was made in this process; save it as YAML and give its path.")


def _open(device: Device) -> Runtime:
    from device_profiler.runtimes.contract import open_runtime

    runtime = open_runtime(device)
    runtime.check()
    return runtime


def _fill(
    wanted: Sequence[Wanted],
    device: Device,
    table_dir: str | Path,
    space: str,
    retry: bool,
    limits: Limits | None,
    seed: int,
    progress: OnProgress | None,
    cache_dir: str | Path | None,
) -> Table:
    path = table_path(table_dir, device.name, device.runtime)
    table = Table.load(path) if path.exists() else None
    missing = missing_rows(table, wanted, retry)
    if table is not None and not missing:
        return table
    from device_profiler.samples import RunLog

    runtime = _open(device)
    missing = missing_rows(table, wanted, retry, runtime.source)
    if table is not None and not missing:
        return table
    table = opened_table(table, path, _header(device, runtime, seed))
    cache = Path(cache_dir) if cache_dir is not None else Path(table_dir) / CACHE
    log = RunLog(path.with_name(f"{path.stem}.samples.csv.gz"))
    before, measured = table.header, []
    for record in records_of(missing, device, runtime, space, limits, seed, progress, cache, log):
        table.append(record)
        measured.append(record.primary_key)
        summary = log.summary(limits.drift if limits else 0.1)
        note_run(table, before, {**summary, "seed": seed} if summary else None, measured)
        table.save(path)
    return table


def note_run(
    table: Table, before: Header, reference: Mapping[str, Any] | None, measured: Collection[tuple[str, str, str]]
) -> None:
    """Write into the table's header when it was measured last, and beside which reference latency each row was.

    Args:
        before: the header as it was before the run. measured: primary keys of the run's rows.
    """
    rows = [record.primary_key for record in table]
    table.header = replace(
        table.header,
        updated=datetime.date.today().isoformat(),
        reference=with_run(before, rows, reference, measured),
    )


def opened_table(table: Table | None, path: Path, header: Header) -> Table:
    """The table, its header telling of the run to come; or a new one of that header.

    Raises:
        ProfileError: if the table was measured with something else than the header says.
    """
    if table is None:
        return Table(header)
    differs = table.header.conflicts(header)
    if differs:
        raise ProfileError(
            f"{path}: this table was measured with another {'; '.join(differs)}; "
            "give another table directory, or move this table away to measure it anew."
        )
    table.header = table.header.continued(header)
    return table


def table_to_go_on_with(device: Device, table_dir: str | Path, seed: int = 0) -> Table:
    """The device's table on disk, if what the device is now may go on with it; see ``opened_table``."""
    path = table_path(table_dir, device.name, device.runtime)
    runtime = _open(device)
    try:
        return opened_table(Table.load(path), path, _header(device, runtime, seed))
    finally:
        runtime.close()


def settings(device: Device) -> dict[str, Any]:
    """What of the device's YAML rows of one table must share beside the header's own fields."""
    found: dict[str, Any] = {"threads": device.threads}
    if device.compute_unit == "CUDA":
        found["cuda_graph"] = device.cuda_graph
    if device.optimization:
        found["optimization"] = device.optimization
    if device.roofline is not None:
        found |= device.roofline.model_dump(exclude={"source"}, exclude_none=True)
    return found


def _header(device: Device, runtime: Runtime, seed: int) -> Header:
    about = runtime.describe()
    today = datetime.date.today().isoformat()
    notes = " ".join(part for part in (device.notes, about.get("notes", "")) if part)
    if device.roofline is not None:
        notes = f"{notes} {device.roofline.source}".strip()
    told = {name: about[name] for name in ("provider", "model") if about.get(name)}
    return Header(
        device=device.name,
        runtime=device.runtime,
        chip=about.get("chip", device.chip),
        os=about.get("os", device.os),
        runtime_version=about.get("runtime_version", ""),
        compute_unit=device.compute_unit,
        precision=device.precision,
        toolkit_version=about.get("toolkit_version", ""),
        created=today,
        updated=today,
        notes=notes,
        details={**settings(device), **told, "seed": seed},
    )


def _sizes(text: str, counts: tuple[int, ...], what: str, form: str) -> tuple[int, ...]:
    parts = re.split("[x,]", text.strip().lower())
    if len(parts) not in counts or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ProfileError(f"{what} {text!r} cannot be read; write {form}.")
    return tuple(int(part) for part in parts)
