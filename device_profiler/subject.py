"""What is lowered: a workload together with how its module is built, in a form that a child process can be told."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_profiler.errors import ProfileError
from search_spaces.arrangement import Arrangement
from search_spaces.registry import points
from search_spaces.workload import Workload

if TYPE_CHECKING:
    from torch import Tensor, nn

Built = tuple["nn.Module", "tuple[Tensor, ...]", "tuple[str, ...]"]
FACTORY = "device_profiler.subject:build_from_space"
SEGMENT = "device_profiler.subject:build_segment"
REFERENCE = "device_profiler.subject:build_reference"
GROUPS = ("temporal_nas.blocks", "temporal_nas.families")  # what other packages add


@dataclass(frozen=True)
class Subject:
    """A workload and its origin.

    Args:
        workload: what the row will be about; its precision is the device's.
        space: name or path of the space that a backbone or network belongs to; empty for a block on its own.
        arrangement: of a whole network.
        copies: how often the block is stacked (the slope method).
        factory: ``module:function`` taking a subject and giving (module, example inputs, input names).
    """

    workload: Workload
    space: str = ""
    arrangement: Arrangement | None = None
    copies: int = 1
    factory: str = FACTORY

    @property
    def key(self) -> str:
        """The workload's key."""
        return self.workload.key

    def build(self) -> Built:
        """Module in evaluation mode, example inputs and their names. Imports torch."""
        module, _, name = self.factory.partition(":")
        built: Built = getattr(importlib.import_module(module), name)(self)
        return built

    def fingerprint(self) -> str:
        """What the module depends on, hashed without building it: the subject, the sources, the libraries."""
        digest = hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode())
        digest.update(_sources(self.factory.partition(":")[0], self.space).encode())
        return digest.hexdigest()[:16]

    def with_copies(self, copies: int) -> Subject:
        """The same subject, stacked."""
        return replace(self, copies=copies)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``from_json`` reads."""
        workload = asdict(self.workload)
        workload["params"] = [list(pair) for pair in self.workload.params]
        return {
            "workload": workload,
            "space": self.space,
            "arrangement": self.arrangement.to_json() if self.arrangement else None,
            "copies": self.copies,
            "factory": self.factory,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Subject:
        """The subject that ``to_json`` wrote."""
        workload = dict(data["workload"])
        workload["params"] = tuple((name, value) for name, value in workload["params"])
        arrangement = data["arrangement"]
        return cls(
            workload=Workload(**workload),
            space=data["space"],
            arrangement=Arrangement.from_json(arrangement) if arrangement else None,
            copies=data["copies"],
            factory=data["factory"],
        )


@cache
def _sources(factory_module: str, space: str) -> str:
    """A hash over the sources that define modules: ours, other packages', the factory, a space file; and versions."""
    digest = hashlib.sha256()
    spec = importlib.util.find_spec("search_spaces")
    assert spec is not None and spec.submodule_search_locations
    root = Path(next(iter(spec.submodule_search_locations)))
    files = sorted(root.rglob("*.py")) + [Path(__file__)]
    factory_spec = importlib.util.find_spec(factory_module)
    if factory_spec is None:
        raise ProfileError(f"factory module {factory_module!r} cannot be found; install the package that has it.")
    if factory_spec.origin:
        files.append(Path(factory_spec.origin))
    for candidate in (Path(space), root / "spaces" / f"{space}.yaml"):
        if space and candidate.is_file():
            files.append(candidate)
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    found = [point for group in GROUPS for point in points(group)]
    for point in sorted(found, key=lambda p: (p.name, p.value)):
        version = point.dist.version if point.dist else ""
        digest.update(f"{point.name}={point.value}@{version}".encode())
        for path in _package_files(point.value):  # an editable install changes under the same version
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for package in ("torch", "diffusers"):
        digest.update(f"{package}=={package_version(package)}".encode())
    return digest.hexdigest()


def _package_files(target: str) -> list[Path]:
    """The sources of the package that ``module:name`` is in, a block's helpers among them; found without importing."""
    spec = importlib.util.find_spec(target.partition(":")[0].partition(".")[0])
    if spec is None:  # said when the block is built
        return []
    if spec.submodule_search_locations is None:
        return [Path(spec.origin)] if spec.origin else []
    return sorted(path for folder in spec.submodule_search_locations for path in Path(folder).rglob("*.py"))


def package_version(package: str) -> str:
    """The installed version, or ``absent``; read from the metadata, so nothing is imported."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def build_from_space(subject: Subject) -> Built:
    """The module that ``search_spaces`` builds for the workload, stacked ``copies`` times where asked."""
    from search_spaces.network import build_module
    from search_spaces.space import Space

    space = Space.load(subject.space) if subject.space else None
    module, inputs, names = build_module(subject.workload, space, subject.arrangement)
    if subject.copies > 1:
        module = _stack(subject, space)
    return module.eval(), tuple(inputs), tuple(names)


def _stack(subject: Subject, space: Any) -> nn.Module:
    from torch import nn

    from search_spaces.network import build_module

    class Stack(nn.Module):
        """The block, ``copies`` times in a row, each with its own weights."""

        def __init__(self) -> None:
            super().__init__()
            self.copies = nn.ModuleList(
                build_module(subject.workload, space, subject.arrangement, seed=n)[0] for n in range(subject.copies)
            )

        def forward(self, x: Tensor, *context: Tensor) -> Tensor:
            for block in self.copies:
                x = block(x, *context)
            return x

    return Stack()


def build_segment(subject: Subject) -> Built:
    """A piece of a backbone around the block: convolution, the block ``copies`` times (0 for none), convolution.

    What the in-context method subtracts from each other: on devices where hand-over between compute units is not
    free, a block between convolutions costs something else than alone.
    """
    import torch
    from torch import nn

    from search_spaces.network import build_module

    shape = subject.workload
    _, inputs, names = build_module(shape)
    blocks = [build_module(shape, seed=n)[0] for n in range(subject.copies)]

    class Segment(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(shape.channels, shape.channels, 3, padding=1)
            self.blocks = nn.ModuleList(blocks)
            self.last = nn.Conv2d(shape.channels, shape.channels, 3, padding=1)

        def forward(self, x: Tensor, *context: Tensor) -> Tensor:
            y = nn.functional.silu(self.first(x))
            for block in self.blocks:
                y = block(y, *context)
            return x + self.last(nn.functional.silu(y))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        segment = Segment().eval().requires_grad_(False)
    if not subject.copies:
        inputs, names = inputs[:1], names[:1]
    return segment, tuple(inputs), tuple(names)


def reference_subject(precision: str) -> Subject:
    """A small fixed workload of a few milliseconds, measured through every run so that drift is seen."""
    workload = Workload(block="Reference", params=(), channels=32, frames=8, height=48, width=48, precision=precision)
    return Subject(workload, factory=REFERENCE)


def build_reference(subject: Subject) -> Built:
    """A convolution, a reordering along time, a normalisation and a product: what the blocks do, never changed.

    Its tensors (2.4 MB in fp32) are larger than a core's own cache, so that it also feels neighbours who take shared
    cache and memory bandwidth, and not only those who take the processor.
    """
    import torch
    from torch import nn

    shape = subject.workload

    class Reference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Conv2d(shape.channels, shape.channels, 1)
            self.norm = nn.LayerNorm(shape.channels)
            self.out = nn.Linear(shape.channels, shape.channels)

        def forward(self, x: Tensor) -> Tensor:
            y = self.mix(x).flatten(2).permute(2, 0, 1).contiguous()  # (H*W, T, C): tokens along time
            y = nn.functional.silu(self.out(self.norm(y)))
            return x + y.permute(1, 2, 0).reshape(x.shape)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Reference().eval()
    return module, (torch.zeros(shape.batch * shape.frames, shape.channels, shape.height, shape.width),), ("x",)
