"""A workload: a variant, a backbone, a network or an end of it, at a shape and precision; what is measured once."""

import math
import re
from dataclasses import dataclass

from search_spaces.errors import MAX_FRAMES, SpaceError
from search_spaces.variant import Variant

#: Of each precision that is measured.
BYTES_PER_ELEMENT: dict[str, int] = {"fp32": 4, "fp16": 2}

#: What is measured beside blocks.
WHOLE = ("backbone", "network", "text_encoder", "decoder", "spatial")

MAX_ELEMENTS = 2**40  # of one input: some terabytes

_KEY = re.compile(
    r"(?P<label>[^/@]+)/c(?P<channels>\d{1,9})/t(?P<frames>\d{1,9})/(?P<height>\d{1,9})x(?P<width>\d{1,9})"
    r"(/l(?P<tokens>\d{1,9})x(?P<dim>\d{1,9}))?(/e(?P<embedding>\d{1,9}))?/b(?P<batch>\d{1,9})@(?P<precision>\w+)"
)


@dataclass(frozen=True)
class Workload:
    """What a table row is about. ``key`` is its name everywhere; positions of equal shape share one workload.

    ``block`` is a block's name, or one of ``WHOLE``; ``name`` then says which. Sizes are those of the input: a block's
    feature map at its position, the latent of a whole network, the latent that one call of a decoder takes, what a
    ``spatial`` part of a backbone reads (skip included). A text encoder's are one row of tokens, as wide as its output.
    """

    block: str
    params: tuple[tuple[str, int], ...]
    channels: int
    frames: int
    height: int
    width: int
    batch: int = 1
    precision: str = "fp32"
    context_tokens: int = 0
    context_dim: int = 0
    name: str = ""
    embedding_dim: int = 0

    def __post_init__(self) -> None:
        if self.precision not in BYTES_PER_ELEMENT:
            raise SpaceError(f"unknown precision {self.precision!r}. Known precisions: {', '.join(BYTES_PER_ELEMENT)}.")
        sizes = (self.channels, self.frames, self.height, self.width, self.batch)
        if min(sizes) < 1:
            raise SpaceError(f"channels, frames, height, width and batch must be at least 1, but are {sizes}")
        if max(sizes) > MAX_FRAMES or math.prod(sizes) > MAX_ELEMENTS:
            raise SpaceError(
                f"channels, frames, height, width and batch must be at most {MAX_FRAMES:,} and {MAX_ELEMENTS:,} in "
                f"product, but are {sizes}"
            )

    @property
    def is_block(self) -> bool:
        """Whether this is a single temporal block (and not a backbone, a whole network or an end of it)."""
        return self.block not in WHOLE

    @property
    def variant(self) -> Variant:
        """The block with its parameters."""
        return Variant(self.block, self.params)

    @property
    def base(self) -> str:
        """The key without its precision; plans name workloads so."""
        shape = f"t{self.frames}/{self.height}x{self.width}"
        if self.block == "text_encoder":
            return f"{self.block}:{self.name}/l{self.context_tokens}x{self.context_dim}/b{self.batch}"
        if not self.is_block:
            return f"{self.block}:{self.name}/{shape}/b{self.batch}"
        text = f"/l{self.context_tokens}x{self.context_dim}" if self.context_tokens else ""
        time = f"/e{self.embedding_dim}" if self.embedding_dim else ""
        return f"{self.variant.label}/c{self.channels}/{shape}{text}{time}/b{self.batch}"

    @property
    def key(self) -> str:
        """For example ``Conv3D(kernel_size=3)/c320/t30/64x64/b1@fp16``."""
        return f"{self.base}@{self.precision}"

    @classmethod
    def parse(cls, key: str) -> "Workload":
        """The block workload that a key names (the inverse of ``key``).

        Raises:
            SpaceError: if the text is no key of a block; backbones and networks need their space.
        """
        match = _KEY.fullmatch(key)
        if match is None:
            raise SpaceError(
                f"cannot read workload {key!r}; a block's key looks like Conv3D(kernel_size=3)/c320/t30/64x64/b1@fp16"
            )
        variant = Variant.parse(match["label"])
        return cls(
            variant.block,
            variant.params,
            channels=int(match["channels"]),
            frames=int(match["frames"]),
            height=int(match["height"]),
            width=int(match["width"]),
            batch=int(match["batch"]),
            precision=match["precision"],
            context_tokens=int(match["tokens"] or 0),
            context_dim=int(match["dim"] or 0),
            embedding_dim=int(match["embedding"] or 0),
        )
