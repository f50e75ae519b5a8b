"""The contract that every block keeps, as tests anybody can inherit for a block of their own.

    from search_spaces.testing import BlockContract

    class TestMyBlock(BlockContract):
        variant = Variant.of("MyBlock", heads=4)

The block is found by name: ours, or one that a package adds through the entry point group ``temporal_nas.blocks``.
``FamilyContract`` holds a family of networks to its contract in the same way: inherit and name a ``preset``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from search_spaces.blocks import BlockSpec, block_spec, build_block, complete
from search_spaces.errors import SpaceError
from search_spaces.family_testing import FamilyContract as FamilyContract
from search_spaces.network import build_module
from search_spaces.variant import Variant
from search_spaces.workload import Workload

#: Core ML's limit on the dimensions of any tensor.
MAX_RANK = 5


class BlockContract:
    """Inherit, name a ``variant``, and pytest does the rest. Sizes may be changed where a block needs others."""

    variant: ClassVar[Variant]
    channels: ClassVar[int] = 16
    context_dim: ClassVar[int] = 12
    embedding_dim: ClassVar[int] = 20
    clips: ClassVar[int] = 2
    frames: ClassVar[int] = 4
    height: ClassVar[int] = 6
    width: ClassVar[int] = 4

    # What the tests are made of -----------------------------------------------------------------------------------

    def block(self) -> nn.Module:
        """As it comes: freshly initialised."""
        torch.manual_seed(0)
        return build_block(self.variant, self.channels, self.context_dim, self.embedding_dim).eval()

    def trained(self) -> nn.Module:
        """A stand-in for a trained block: no weight is zero any more."""
        block = self.block()
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return block

    def inputs(self, frames: int | None = None, height: int | None = None) -> tuple[Tensor, int, dict[str, Tensor]]:
        """``x``, ``num_frames``, and what the block reads beside them."""
        generator = torch.Generator().manual_seed(1)
        frames = frames or self.frames
        shape = (self.clips * frames, self.channels, height or self.height, self.width)
        readable = {
            "context": torch.randn(self.clips, 5, self.context_dim, generator=generator),
            "embedding": torch.randn(self.clips, self.embedding_dim, generator=generator),
        }
        beside = {name: tensor for name, tensor in readable.items() if name in self.spec().reads}
        return torch.randn(shape, generator=generator), frames, beside

    def spec(self) -> BlockSpec:
        return block_spec(self.variant.block)

    # The contract -------------------------------------------------------------------------------------------------

    def test_starts_as_the_identity(self) -> None:
        """So that a layer added to a trained image backbone changes nothing; not of a block that is a choice."""
        if not self.spec().identity:
            return
        x, frames, beside = self.inputs()
        with torch.no_grad():
            _equal(self.block()(x, frames, **beside), x, "a fresh block must return its input")

    def test_keeps_the_shape_at_any_clip_size(self) -> None:
        """Training and deployment clips differ, so nothing may be built for one size."""
        block = self.trained()
        for frames, height in ((self.frames, self.height), (self.frames + 1, self.height), (self.frames, 9)):
            x, frames, beside = self.inputs(frames, height)
            with torch.no_grad():
                out = block(x, frames, **beside)
            assert out.shape == x.shape, f"{tuple(x.shape)} came out as {tuple(out.shape)}"
            assert out.isfinite().all(), "the output is not finite"

    def test_leaves_an_image_alone(self) -> None:
        """T = 1 is an image of joint training: the identity path, however the block is trained."""
        if not self.spec().identity:
            return
        x, _, beside = self.inputs()
        each = {name: tensor.repeat_interleave(self.frames, 0) for name, tensor in beside.items()}
        with torch.no_grad():
            _equal(self.trained()(x, 1, **each), x, "T = 1 must be the identity")

    def test_is_residual(self) -> None:
        """Once trained it changes its input, and its input's gradient passes through the residual path."""
        x, frames, beside = self.inputs()
        out = self.trained()(x.requires_grad_(), frames, **beside)
        assert not torch.allclose(out, x), "a trained block must change its input"
        out.sum().backward()
        assert x.grad is not None and x.grad.isfinite().all(), "no finite gradient reaches the input"

    def test_every_parameter_learns(self) -> None:
        """A parameter without gradient is dead weight that the table would charge for."""
        block = self.trained()
        x, frames, beside = self.inputs()
        (block(x, frames, **beside) * torch.linspace(-1, 1, x.numel()).reshape(x.shape)).sum().backward()
        for name, parameter in block.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, f"{name} gets no gradient"

    def test_first_step_leaves_the_identity(self) -> None:
        """Zero-initialised does not mean stuck at zero."""
        block = self.block()
        x, frames, beside = self.inputs()
        target = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
        (block(x, frames, **beside) - target).square().mean().backward()
        gradients = [parameter.grad for parameter in block.parameters() if parameter.grad is not None]
        assert any(gradient.abs().sum() > 0 for gradient in gradients), "a fresh block gets no gradient at all"

    def test_clips_of_a_batch_do_not_mix(self) -> None:
        """Frames are folded into the batch; a block that folds them wrongly mixes clips."""
        block = self.trained()
        x, frames, beside = self.inputs()
        with torch.no_grad():
            together = block(x, frames, **beside)[:frames]
            alone = block(x[:frames], frames, **{name: tensor[:1] for name, tensor in beside.items()})
        assert torch.allclose(together, alone, atol=1e-5), "the first clip changes with the second"

    def test_reads_what_it_says(self) -> None:
        """``reads`` decides what a workload carries, so all of it must matter; a text that is missing is one line."""
        block = self.trained()
        x, frames, beside = self.inputs()
        with torch.no_grad():
            plain = block(x, frames, **beside)
            for name, tensor in beside.items():
                other = block(x, frames, **{**beside, name: tensor.flip(1) * 2})
                assert not torch.allclose(plain, other), f"it says that it reads {name}, but {name} changes nothing"
            if "context" in beside:
                try:
                    block(x, frames, **{name: tensor for name, tensor in beside.items() if name != "context"})
                except SpaceError:
                    return
                raise AssertionError("a block that reads the text must raise SpaceError without one")

    def test_no_tensor_exceeds_the_rank_limit(self) -> None:
        """Core ML refuses tensors of more than five dimensions."""
        x, frames, beside = self.inputs()
        with torch.no_grad(), _RankMeter() as meter:
            self.trained()(x, frames, **beside)
        assert meter.rank <= MAX_RANK, f"a tensor has {meter.rank} dimensions, over {MAX_RANK}"

    def test_exports_to_the_same_function(self) -> None:
        """``torch.export`` with static shapes is the door to every lowering."""
        reads = self.spec().reads
        workload = Workload(
            self.variant.block,
            complete(self.variant, self.channels).params,
            channels=self.channels,
            frames=self.frames,
            height=self.height,
            width=self.width,
            batch=self.clips,
            context_tokens=5 if "context" in reads else 0,
            context_dim=self.context_dim if "context" in reads else 0,
            embedding_dim=self.embedding_dim if "embedding" in reads else 0,
        )
        module, examples, names = build_module(workload)
        assert len(examples) == len(names)
        with _quiet_export(), torch.no_grad():
            exported = torch.export.export(module, examples).run_decompositions({})
            out, expected = exported.module()(*examples), module(*examples)
        assert torch.allclose(out, expected, atol=1e-5), "the exported block computes something else"
        assert not torch.equal(expected, examples[0]), "the measured block is an identity that a compiler may drop"

    def test_state_is_parameters_only(self) -> None:
        """Positions and the like are made from shapes; a stored one would tie a checkpoint to a clip size."""
        block = self.block()
        extra = set(block.state_dict()) - {name for name, _ in block.named_parameters()}
        assert not extra, f"state beyond parameters: {', '.join(sorted(extra))}"

    def test_is_known_by_its_label(self) -> None:
        """The label is what tables, YAML and front files carry."""
        full = complete(self.variant, self.channels)
        assert Variant.parse(full.label) == full
        assert Variant.from_json(full.to_json()) == full
        assert complete(Variant.of(self.variant.block), self.channels).block == self.variant.block


class _RankMeter(TorchDispatchMode):
    """Watches every tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.rank = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.rank = max([self.rank, *(leaf.ndim for leaf in tree_leaves(out) if isinstance(leaf, Tensor))])
        return out


@contextmanager
def _quiet_export() -> Iterator[None]:
    """torch warns about its own internals while it exports; a suite in which warnings fail must not hear that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _equal(out: Tensor, expected: Tensor, rule: str) -> None:
    assert out.shape == expected.shape, f"{rule}, but {tuple(expected.shape)} came out as {tuple(out.shape)}"
    assert torch.equal(out, expected), f"{rule}, but it differs by up to {(out - expected).abs().max():.3g}"
