"""A fleet: many phones or hosts measure one table together, through dask.distributed.

    dask scheduler --host 127.0.0.1                             # once; beyond one machine with TLS: docs/profiler.md
    nas worker tcp://HOST:8786 --device DEVICE                  # once for each phone or host
    nas profile SPACE --device DEVICE --scheduler tcp://HOST:8786

A worker owns one device and takes a group of workloads at a time, since rounds interleave within a group. Every row
goes to the scheduler's event log the moment it is known, and from there to whoever profiles, who writes it. A worker
that dies takes only what it was timing with it: dask gives its group to another, which skips the rows already logged.
One whose device is gone for good (a phone that stays unplugged) is let go, and the others take its rows.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import queue
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_profiler import profile as profiling
from device_profiler.device import Device
from device_profiler.errors import ProfileError
from device_profiler.fleet_network import connect, need_dask, own_interface
from device_profiler.measure import Progress, silent
from device_profiler.rows import failure
from device_profiler.samples import Job, RunLog, append_samples
from device_profiler.wanted import Wanted, missing_rows, records_of, wanted_rows
from latency_tables.header import Header
from latency_tables.record import Record
from latency_tables.table import Table, table_path
from search_spaces.writing import write_whole

if TYPE_CHECKING:
    from device_profiler.measure import OnProgress
    from device_profiler.samples import Limits

GROUP = 8  # workloads of one task at most: enough to interleave, few enough to be measured again
TURNS = 2  # tasks a worker should get at least: with fewer the others wait for whoever has the last one
PATIENCE_S = 60.0  # how long a run goes on without any worker
SAMPLES = "-samples"
PLUGIN = "temporal-nas-device"


class Owner:
    """What a worker owns: its device, and the folder where it keeps what it lowers. A dask worker plugin."""

    name = PLUGIN

    def __init__(self, device: Device, cache: Path) -> None:
        self.device = device
        self.cache = cache

    def setup(self, worker: Any) -> None:
        """Nothing is opened before the first task."""

    def teardown(self, worker: Any) -> None:
        """Nothing is held between tasks."""


def serve(
    address: str,
    device: str | Path | Device,
    cache: str | Path = Path("tables") / profiling.CACHE,
    ready: Callable[[str], None] | None = None,
    *,
    trusted_network: bool = False,
) -> None:
    """Own the device and measure what the scheduler gives, until the process is stopped; ``ready`` is told its name.

    Whoever reaches a worker runs code there, so it listens where its scheduler does and nowhere else: on this machine
    alone, or, with TLS or on a network that is trusted, on the interface that leads to the scheduler.

    Raises:
        ProfileError: the device is unknown or not ready, dask is missing, there is no scheduler at the address, or it
            has gone; or the scheduler is on a network that nobody said is trusted.
    """
    need_dask()
    from distributed import Worker

    host = own_interface(address, trusted_network)
    target = device if isinstance(device, Device) else Device.load(device)
    profiling._open(target).close()
    connect(address).close()
    logging.getLogger("distributed").setLevel(logging.WARNING)

    async def work(folder: str) -> None:
        worker = Worker(
            address,
            nthreads=1,
            resources={target.name: 1},
            name=f"{target.name}-{uuid.uuid4().hex[:6]}",
            host=host,
            dashboard=False,
            dashboard_address="127.0.0.1:0",
            local_directory=folder,
        )
        owner: Any = Owner(target, Path(cache).resolve())
        worker.plugins[PLUGIN] = owner
        async with worker:
            if ready is not None:
                ready(str(worker.name))
            await worker.finished()

    with tempfile.TemporaryDirectory(prefix="nas-worker-") as folder:
        asyncio.run(work(folder))
    try:
        connect(address).close()
    except ProfileError:
        raise ProfileError(
            f"the scheduler at {address} has gone; start one with dask scheduler --host HOST, then this worker again."
        ) from None
    raise ProfileError(f"let go, as {target.name} could not go on (nas profile says why); start this worker again.")


class DeviceGone(ProfileError):
    """A worker's device cannot go on where another's may."""

    def __init__(self, message: str, worker: str = "", address: str = "") -> None:
        super().__init__(message)
        self.worker, self.address = worker, address


@dataclass(frozen=True)
class Order:
    """What one task measures. ``space_text`` is the YAML of a space that does not ship, for workers on other hosts."""

    rows: tuple[Wanted, ...]
    space: str
    space_text: str
    limits: Limits | None
    seed: int
    topic: str
    header: dict[str, Any]


def profile_fleet(
    space: str | Path,
    device: str | Path | Device,
    table_dir: str | Path,
    scheduler: str,
    *,
    spatial: bool = False,
    lowerings: Sequence[str] = (),
    method: str | None = None,
    retry: bool = False,
    limits: Limits | None = None,
    seed: int = 0,
    group: int | None = None,
    patience_s: float = PATIENCE_S,
    progress: OnProgress | None = None,
) -> Table:
    """``profile`` by all workers of a scheduler that own this device. Rows are on disk as they become known.

    Args:
        scheduler: its address, ``tcp://host:8786``.
        spatial: measure the backbone's parts too, each by itself.
        group: workloads a worker takes at once; by default as ``group_size`` says.
        patience_s: how long to wait for a worker when there is none, before giving up with what is written.

    Raises:
        ProfileError: no dask, no scheduler, no worker that owns the device, or workers that differ in chip, phone
            model, system, runtime or its settings.
    """
    from search_spaces.space import Space

    loaded = Space.load(space)
    target = device if isinstance(device, Device) else Device.load(device)
    workloads = (*loaded.workloads(target.precision), *loaded.ends(target.precision))
    if spatial:
        workloads += loaded.spatial_workloads(target.precision)
    wanted = wanted_rows(workloads, target, lowerings, method)
    path = table_path(table_dir, target.name, target.runtime)
    table = Table.load(path) if path.exists() else None
    missing = missing_rows(table, wanted, retry, "estimated" if target.roofline is not None else "measured")
    if table is not None and not missing:
        return table
    origin = profiling._origin(space, loaded)
    text = Path(origin).read_text("utf-8") if Path(origin).is_file() else ""
    with connect(scheduler) as client:
        header = _agreed_header(client, target, scheduler, seed)
        table = profiling.opened_table(table, path, header)
        order = Order((), "" if text else origin, text, limits, seed, f"nas-{uuid.uuid4().hex}", header.to_mapping())
        run = _Run(client, target, order, table, path, progress, patience_s)
        try:
            run.measure(missing, group or group_size(len(missing), run.worker_count()))
        finally:
            run.finish()
    return table


def group_size(rows: int, workers: int) -> int:
    """Workloads of one task: ``GROUP``, or fewer where some workers would have nothing to do before the end."""
    return max(1, min(GROUP, math.ceil(rows / (TURNS * max(1, workers)))))


class _Run:
    """One profiling run seen from its client: orders out, rows in."""

    def __init__(
        self,
        client: Any,
        device: Device,
        order: Order,
        table: Table,
        path: Path,
        progress: OnProgress | None,
        patience_s: float,
    ) -> None:
        self.client, self.device, self.order = client, device, order
        self.table, self.path = table, path
        self.tell = progress or silent
        self.patience_s = patience_s
        self.arrived: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.done: set[tuple[str, str, str]] = set()
        self.references: list[dict[str, Any]] = []
        self.samples = 0
        self.total = 0
        self.gone: set[str] = set()

    def measure(self, rows: Sequence[Wanted], group: int) -> None:
        """Give the rows out in groups, and write each as it comes."""
        from distributed import KilledWorker

        self.total = len(rows)
        for topic in (self.order.topic, self.order.topic + SAMPLES):
            self.client.subscribe_topic(topic, lambda event: self.arrived.put(event[1]))
        waiting = {
            self._submit(rows[start : start + group]): rows[start : start + group]
            for start in range(0, len(rows), group)
        }
        # dask blames every task queued on a worker that dies, so suspects are tried one by one, with nothing beside.
        suspects: list[Wanted] = []
        on_trial: Any = None
        seen = time.monotonic()
        while waiting or suspects:
            if not waiting:
                suspect = suspects.pop(0)
                on_trial = self._submit([suspect])
                waiting[on_trial] = [suspect]
            self._write(0.2)
            for future in [future for future in waiting if future.done()]:
                asked = waiting.pop(future)
                error = future.exception() if future.status == "error" else None
                if error is None and future.status == "finished":
                    continue
                self._catch_up()
                left = [row for row in asked if row.primary_key not in self.done]
                if isinstance(error, KilledWorker) and future is on_trial and left:
                    self._take(_killed(left[0], str(error.last_worker and error.last_worker.name), error))
                elif isinstance(error, KilledWorker):
                    suspects.extend(left)
                elif isinstance(error, DeviceGone):
                    self._let_go(error)
                    if future is on_trial:
                        suspects.extend(left)
                    elif left:
                        waiting[self._submit(left)] = left
                else:
                    raise error if isinstance(error, ProfileError) else ProfileError(f"a worker could not: {error}")
            if self._workers():
                seen = time.monotonic()
            elif time.monotonic() - seen > self.patience_s:
                raise ProfileError(
                    f"no worker that owns {self.device.name} is left; {len(self.done)} of {self.total} rows are "
                    f"written. Start one (nas worker ADDRESS --device {self.device.name}) and run the same command."
                )

    def _submit(self, rows: Sequence[Wanted]) -> Any:
        return self.client.submit(
            measure_order, replace(self.order, rows=tuple(rows)), resources={self.device.name: 1}, pure=False
        )

    def worker_count(self) -> int:
        """How many workers own the device now."""
        return len(self._workers())

    def _workers(self) -> set[str]:
        known = self.client.scheduler_info(n_workers=-1)["workers"]
        return {address for address, worker in known.items() if self.device.name in worker["resources"]} - self.gone

    def _let_go(self, error: DeviceGone) -> None:
        """Do without a worker; what waits there goes to the others.

        Raises:
            ProfileError: if there are no others.
        """
        if error.address in self.gone:
            return
        if not self._workers() - {error.address}:
            raise ProfileError(
                f"{error} ({len(self.done)} of {self.total} rows are written, and no other worker that owns "
                f"{self.device.name} is left: run the same command when this is set right.)"
            )
        self.gone.add(error.address)
        self.client.retire_workers([error.address])
        said = f"{error.worker} is let go, the others take its rows: {error}"
        self.tell(Progress("gone", len(self.done), self.total, detail=said))

    def _write(self, timeout_s: float) -> None:
        """Put what arrives within the time into the table."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            try:
                self._take(self.arrived.get(timeout=left))
            except queue.Empty:
                return

    def _take(self, event: dict[str, Any]) -> None:
        if "reference" in event:
            self.references.append(event["reference"])
            return
        if "samples" in event:
            self.samples += 1
            append_samples(self.path.with_name(f"{self.path.stem}.samples.csv.gz"), event["samples"])
            return
        record = Record(**event["record"])
        if record.primary_key in self.done:
            return
        self.done.add(record.primary_key)
        self.table.append(record)
        self.table.save(self.path)
        self.tell(Progress("row", len(self.done), self.total, record.key, event["worker"]))

    def _catch_up(self) -> None:
        """What the scheduler has logged and the subscription has not brought yet."""
        for _, event in self.client.get_events(self.order.topic):
            if "record" in event:
                self._take(event)

    def finish(self) -> None:
        """The last rows, and the reference workload's course: that of the least quiet worker."""
        self._catch_up()
        self._write(0.1)
        for _, event in self.client.get_events(self.order.topic + SAMPLES)[self.samples :]:
            self._take(event)
        if self.references:
            worst = max(self.references, key=lambda found: found["spread"])
            workers = len({found["worker"] for found in self.references})
            reference = {name: value for name, value in worst.items() if name != "worker"}
            told = {**reference, "seed": self.order.seed, "workers": workers}
            profiling.note_run(self.table, self.table.header, told, self.done)
        self.table.save(self.path)


class _Sent(RunLog):
    """Raw samples that go to whoever profiles, round by round."""

    def __init__(self, send: Callable[[str], None], run: str) -> None:
        super().__init__(None, run)
        self.send = send

    def flush(self) -> None:
        """Send what was noted."""
        text = self.take()
        if text:
            self.send(text)


def measure_order(order: Order) -> int:
    """A task: measure the rows on the device of the worker that runs it, logging each; gives how many it measured.

    Raises:
        DeviceGone: if the worker's device cannot, or is another one than the table is about.
    """
    from distributed import get_worker

    worker: Any = get_worker()
    try:
        return _measure_order(order, worker)
    except ProfileError as error:
        raise DeviceGone(str(error), str(worker.name), str(worker.address)) from None


def _measure_order(order: Order, worker: Any) -> int:
    from distributed import get_client

    owner: Owner = worker.plugins[PLUGIN]
    events: Any = get_client().get_events(order.topic)
    logged = {_key_of(event["record"]) for _, event in events if "record" in event}
    rows = [row for row in order.rows if row.primary_key not in logged]
    runtime = profiling._open(owner.device)
    here = profiling._header(owner.device, runtime, order.seed)
    differs = Header.from_mapping(order.header).conflicts(here)
    if differs:
        raise ProfileError(f"worker {worker.name} differs from the table: {'; '.join(differs)}; measure it apart.")
    stamp = f"{time.strftime('%Y%m%dT%H%M%S')}-{worker.name}"
    log = _Sent(lambda text: worker.log_event(order.topic + SAMPLES, {"samples": text}), stamp)
    space = _own_space(order.space_text, owner.cache) if order.space_text else order.space
    for record in records_of(rows, owner.device, runtime, space, order.limits, order.seed, None, owner.cache, log):
        worker.log_event(order.topic, {"record": asdict(record), "worker": str(worker.name)})
    summary = log.summary(order.limits.drift if order.limits else 0.1)
    if summary:
        worker.log_event(order.topic, {"reference": {**summary, "worker": str(worker.name)}})
    return len(rows)


def _own_space(text: str, cache: Path) -> str:
    """Where a worker keeps a space that does not ship: the same path for the same text, as lowered files go by it."""
    path = cache / "spaces" / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    return str(path)


def describe_worker(seed: int, dask_worker: Any = None) -> dict[str, Any] | str:
    """The header of what a worker's device measures, or why it cannot."""
    owner: Owner | None = dask_worker.plugins.get(PLUGIN)
    if owner is None:
        return ""
    try:
        runtime = profiling._open(owner.device)
        return profiling._header(owner.device, runtime, seed).to_mapping()
    except ProfileError as error:
        return str(error)


def _agreed_header(client: Any, device: Device, scheduler: str, seed: int) -> Header:
    """The one header of all workers that own the device."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    owners = [address for address, worker in workers.items() if device.name in worker["resources"]]
    if not owners:
        raise ProfileError(
            f"no worker at {scheduler} owns {device.name}; start one for each device: "
            f"nas worker {scheduler} --device {device.name}"
        )
    answers = client.run(describe_worker, seed, workers=owners)
    headers = []
    for address, answer in answers.items():
        if not isinstance(answer, dict):
            raise ProfileError(f"worker {workers[address]['name']}: {answer or 'was not started by nas worker'}")
        headers.append((workers[address]["name"], Header.from_mapping(answer)))
    name, header = headers[0]
    stated = Header(
        device.name,
        device.runtime,
        precision=device.precision,
        compute_unit=device.compute_unit,
        details=profiling.settings(device),
    )
    differs = stated.conflicts(header)
    if differs:
        raise ProfileError(
            f"worker {name} has another {'; '.join(differs)} than {device.name} here; give both one YAML."
        )
    for other, found in headers[1:]:
        differs = header.conflicts(found)
        if differs:
            raise ProfileError(
                f"workers {name} and {other} differ: {'; '.join(differs)}; one table is of one kind of device, so "
                "give them devices of different names."
            )
    return header


def _key_of(record: dict[str, Any]) -> tuple[str, str, str]:
    return record["key"], record["lowering"], record["method"]


def _killed(row: Wanted, worker: str, error: Exception) -> dict[str, Any]:
    job = Job(row.workload, row.lowering, (), row.method)
    reason = f"every worker that took it died, the last one {worker}; measure it alone to see why"
    return {"record": asdict(failure(job, "failed", reason)), "worker": worker}
