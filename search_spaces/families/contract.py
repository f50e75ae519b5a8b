"""The contract of a family of networks: what a folder of ``families/``, or another package, offers the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from search_spaces.variant import Variant

    #: The door to what is chosen: (place, running tensor, what layers may read beside it) -> the tensor that goes on.
    At = Callable[[str, Tensor, Mapping[str, Tensor]], Tensor]

    #: Called with a moment's name, the running tensor and the skips alive then, as (name, tensor).
    Watch = Callable[[str, Tensor, Sequence[tuple[str, Tensor]]], None]


#: By how much a size is divided.
Scale = int | Fraction


@dataclass(frozen=True)
class Place:
    """Where chosen layers may stand: its name, the channels there, and by how much space and time are divided.

    A scale below 1 says that they grow: at ``Fraction(1, 8)`` they are eight times those of the input. ``by_frame``:
    whether the network can be run frame by frame there, so that no layer may look at other frames.
    """

    name: str
    channels: int
    space_scale: Scale
    time_scale: Scale = 1
    by_frame: bool = False


@dataclass(frozen=True)
class Part:
    """A piece of the frame that is measured by itself: its name, the channels it reads (skip included), its scales.

    ``by_frame``: whether it is run so.
    """

    name: str
    channels: int
    space_scale: Scale
    time_scale: Scale = 1
    by_frame: bool = False


@dataclass(frozen=True)
class Layout:
    """What a configuration promises, without torch.

    Attributes:
        inputs: channels of ``x`` and, where the network reads a text, the width of ``context``.
        places: in execution order. parts: of the frame, in execution order; none where it is only measured whole.
        embedding: width of the time embedding that layers may read; 0 where they may not.
        made: what comes out; None where that has the shape of ``x``.
        in_parts: whether the frame is never run in one piece: its cost is then its parts'.
        causal: whether the first frame stands alone: dividing time by n makes 1 + m frames of 1 + n * m.
        projected: width of the text that layers read, where the frame projects it first; 0 where it does not.
    """

    inputs: Mapping[str, int] = field(hash=False)
    places: tuple[Place, ...]
    parts: tuple[Part, ...] = ()
    embedding: int = 0
    projected: int = 0
    made: Place | None = None
    causal: bool = False
    in_parts: bool = False

    def frames(self, scale: Scale, frames: int) -> int:
        """Frames where time is divided by ``scale``, of an input of so many."""
        alone = int(self.causal)
        return alone + (frames - alone) // scale

    def shape(self, place: Place | Part, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """The feature map at a place, (T, C, H, W), of an input of that many frames, rows and columns."""
        size = height // place.space_scale, width // place.space_scale
        return self.frames(place.time_scale, frames), place.channels, *size

    @property
    def in_channels(self) -> int:
        return self.inputs["x"]

    @property
    def context_dim(self) -> int:
        return self.inputs.get("context", 0)

    @property
    def timed(self) -> bool:
        """Whether the network reads a ``timestep``: it embeds one, or answers a text."""
        return bool(self.embedding or self.context_dim)

    @property
    def told_dim(self) -> int:
        """Width of the text that layers read."""
        return self.projected or self.context_dim


@dataclass(frozen=True)
class Preset:
    """A named configuration of a family.

    Attributes:
        config: its arguments; a space may override them, key by key.
        tokens: length of the text that its measured workload reads.
        summary: one phrase for people.
        extras: further keys that a space's config may have.
        measured: what the config says otherwise where a network is measured: what it is trained with, and no more.
    """

    config: Mapping[str, Any] = field(hash=False)
    tokens: int
    summary: str
    extras: tuple[str, ...] = ()
    measured: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Layer:
    """A given model's block as one that may be chosen: the variant that it is, and the weights of that block here."""

    variant: Variant
    weights: Mapping[str, Tensor] = field(hash=False)


@dataclass(frozen=True)
class Mapped:
    """What came over from a given model.

    Attributes:
        source: of the weights. blocks: a module of the frame -> the module that it was copied from.
        fresh: modules that keep their random start. copied, total: parameters. notes: what fits only nearly.
        layers: place -> the given model's block there, where places hold what the given model has as its own.
    """

    source: str
    blocks: dict[str, str]
    fresh: tuple[str, ...]
    copied: int
    total: int
    notes: tuple[str, ...] = ()
    layers: Mapping[str, Layer] = field(default_factory=dict, hash=False)

    def sentence(self) -> str:
        """One line for people."""
        left = f"; fresh: {', '.join(self.fresh)}" if self.fresh else ""
        notes = f" ({'; '.join(self.notes)})" if self.notes else ""
        share = f"{self.copied:,} of {self.total:,} parameters ({self.copied / self.total:.0%})"
        return f"init: {share} in {len(self.blocks)} modules from {self.source}{left}{notes}"


@dataclass(frozen=True)
class Row:
    """One line of a drawing: a moment of execution on the left, one on the right, and whether a skip joins them."""

    left: str | None
    right: str | None = None
    joined: bool = False


@dataclass(frozen=True)
class Picture:
    """How a network is drawn: the left column is run downwards, then the right one, if there is one, upwards.

    Attributes:
        enters, leaves: what goes in and what comes out, for people.
    """

    rows: tuple[Row, ...]
    enters: str
    leaves: str


Scores = Mapping[str, "Tensor"]  # module -> how much each of its heads, or channels, matters


@dataclass(frozen=True)
class Cut:
    """One thing less.

    Attributes:
        name: for people, and to find it again. make: a frame -> a copy without that, the rest of its weights kept.
        changed: what it changes of the configuration, where it takes out a whole block.
    """

    name: str
    make: Callable[[Any], Any]
    changed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Narrowable:
    """A module that can be made narrower by whole units.

    Attributes:
        name: of the module. unit: ``heads`` or ``channels``. width: how many it has.
        last: the module inside that reads them all, ``each`` features apiece.
    """

    name: str
    unit: str
    width: int
    last: nn.Module
    each: int


class Pruning(Protocol):
    """What can be taken out of a family's frames."""

    def block_cuts(self, config: Mapping[str, Any]) -> Sequence[Cut]:
        """Whole blocks that a frame of this configuration can do without, each alone."""

    def width_cut(self, unit: str, scores: Scores, share: float) -> Cut:
        """The least of all units by their scores; every module keeps at least one."""

    def narrowable(self, frame: Any) -> Sequence[Narrowable]:
        """What can be made narrower."""

    def leads(self, config: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        """Whether cuts can lead from one configuration to another."""

    def stages(self, config: Mapping[str, Any]) -> str:
        """A configuration in one phrase, for people."""

    def answer(self, frame: Any, noisy: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """What a frame predicts of noisy images (B, C, H, W), timesteps (B,) and texts (B, L, D)."""

    def misfits(self, config: Mapping[str, Any], channels: int, text: int) -> tuple[Sequence[str], Sequence[str]]:
        """What rules a configuration out for latents of so many channels and texts of that width; and what is only
        otherwise than in a space's own frame."""

    def matching(self, whole: Any, pruned: Any) -> Mapping[str, str]:
        """Modules of a pruned frame -> those of the uncut one whose outputs should be as theirs."""


@runtime_checkable
class Family(Protocol):
    """A kind of network. Importing one loads no torch; its methods that take or give modules do.

    The *frame* is all of a network that is not chosen. ``search_spaces.testing.FamilyContract`` holds a family to what
    is said here.

    Attributes:
        name: of the family. task: what its networks learn, such as ``denoise``.
        presets: its named configurations; a space's ``backbone`` names one.
    """

    name: str
    task: str
    presets: Mapping[str, Preset]

    def layout(self, config: Mapping[str, Any]) -> Layout:
        """The torch-free reading of a configuration.

        Raises:
            SpaceError: naming the first key that is wrong, with the remedy.
        """

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """The frame, freshly initialised."""

    def run(self, frame: nn.Module, inputs: Mapping[str, Any], at: At, watch: Watch | None = None) -> Tensor:
        """One evaluation that hands ``at`` the running tensor at every place, in the layout's order.

        Args:
            inputs: ``x (B*T, C, H, W)``, ``frames``, the T of all of them, where the layout is ``in_parts`` perhaps the
                name of a ``part`` that alone is to run with its layers, and what else the family's task gives: a
                denoiser ``timestep (B,)`` in 0..1000, and ``context (B, L, D)`` if it reads a text.
            at: besides the tensor it is handed what layers may read: ``context``, ``embedding (B, E)`` where the
                layout has one, and ``frames`` where their number is another than the input's divided by the place's.
            watch: is told of every moment of execution, before the layers of a place run.

        Returns:
            The shape of ``x``, or what the layout says that is ``made``.
        """

    def part(self, frame: nn.Module, name: str) -> nn.Module:
        """One of the layout's parts as a module of (x, embedding, context), with its width as ``embedding``.

        Raises:
            SpaceError: if the frame has no such part.
        """

    def units(self, frame: nn.Module) -> Iterable[nn.Module]:
        """Modules that are compiled, sharded and checkpointed one by one; none holds another, or a chosen layer."""

    def features(self, frame: nn.Module) -> Mapping[str, int]:
        """Places whose tensors a discriminator or a distillation may read, in order, with their channels."""

    def encoder(self, frame: nn.Module) -> nn.Module:
        """A copy of the frame that need run no further than the last of ``features``; the frame stays as it is."""

    def givers(self) -> Mapping[str, type]:
        """Classes of models that weights may come from, by the ``_class_name`` that their config.json has."""

    def inherit(self, frame: nn.Module, given: nn.Module) -> Mapped:
        """Copy what matches of a given model into the frame, in place; ``source`` is left empty.

        Raises:
            SpaceError: if nothing matches.
        """

    def pruning(self) -> Pruning | None:
        """What pruning may take out of a frame; None where it may take out nothing."""

    def picture(self, names: Sequence[str], skips: Mapping[str, str]) -> Picture:
        """How a network is drawn.

        Args:
            names: moments of execution in order, places among them; or places alone, where no more is known.
            skips: a moment -> the moment whose output it reads beside the running tensor.
        """
