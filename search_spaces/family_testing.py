"""The contract that every family of networks keeps; import it from ``search_spaces.testing``."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from search_spaces.families import Backbone, build_backbone, family_of
from search_spaces.families.contract import Family, Layout, Picture
from search_spaces.network import VideoNetwork, recompute
from search_spaces.space import Clip, Position, Space, Text
from search_spaces.trace import trace_plan
from search_spaces.variant import Variant


class FamilyContract:
    """Inherit, name a ``preset``, and pytest does the rest. Sizes may be changed where a family needs others.

    The family is found by the preset's name: ours, or one that a package adds through the entry point group
    ``temporal_nas.families``. ``config`` changes the preset, for example to something small.
    """

    preset: ClassVar[str]
    config: ClassVar[Mapping[str, Any]] = {}
    variant: ClassVar[Variant] = Variant.of("Conv1D", kernel_size=3)
    by_frame: ClassVar[Variant] = Variant.of("Residual2D", width=8)  # where no layer may look at other frames
    clips: ClassVar[int] = 2
    frames: ClassVar[int] = 4
    height: ClassVar[int] = 16
    width: ClassVar[int] = 8
    tokens: ClassVar[int] = 5

    # What the tests are made of -----------------------------------------------------------------------------------

    def family(self) -> Family:
        return family_of(self.preset)

    def backbone(self) -> Backbone:
        return Backbone(self.preset, {**self.family().presets[self.preset].config, **self.config})

    def layout(self) -> Layout:
        return self.backbone().layout

    def frame(self, seed: int = 0) -> nn.Module:
        """As it comes: freshly initialised."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_backbone(self.backbone())

    def inputs(self) -> dict[str, Any]:
        """What ``run`` reads."""
        generator = torch.Generator().manual_seed(1)
        layout = self.layout()
        shape = (self.clips * self.frames, layout.in_channels, self.height, self.width)
        found: dict[str, Any] = {
            "x": torch.randn(shape, generator=generator),
            "timestep": torch.linspace(100.0, 900.0, self.clips),
            "frames": self.frames,
        }
        if layout.context_dim:
            found["context"] = torch.randn(self.clips, self.tokens, layout.context_dim, generator=generator)
        return found

    def space(self) -> Space:
        """A space in which every place may hold one layer."""
        layout = self.layout()
        clip = Clip(self.frames, self.height, self.width, 8.0)
        places = (
            Position(
                p.name,
                p.channels,
                p.space_scale,
                1,
                (self.by_frame if p.by_frame else self.variant,),
                time_scale=p.time_scale,
            )
            for p in layout.places
        )
        return Space(
            name="contract",
            backbone=self.backbone(),
            positions=tuple(places),
            clips={"training": clip, "deployment": clip},
            text=Text(self.tokens, layout.context_dim) if layout.context_dim else Text(0, 0),
            latent_channels=layout.in_channels,
        )

    def shape(self, place: Any) -> tuple[int, int, int, int]:
        """(B*T, C, H, W) at a place or part."""
        frames, channels, height, width = self.layout().shape(place, self.frames, self.height, self.width)
        return self.clips * frames, channels, height, width

    # The contract -------------------------------------------------------------------------------------------------

    def test_reading_it_needs_no_torch(self) -> None:
        """Spaces, plans and tables are read on machines without it."""
        module = type(self.family()).__module__
        program = (
            "import sys; sys.modules['torch'] = None\n"
            f"import importlib; family = importlib.import_module({module!r}).FAMILY\n"
            f"family.layout({dict(self.backbone().config)!r})"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"the family's module must offer FAMILY without torch:\n{done.stderr}"

    def test_places_are_visited_in_order_with_what_the_layout_promises(self) -> None:
        layout, inputs = self.layout(), self.inputs()
        visited: list[tuple[str, tuple[int, ...]]] = []
        watched: list[str] = []
        told = {}
        if "context" in inputs:
            told["context"] = torch.Size([*inputs["context"].shape[:2], layout.told_dim])
        if layout.embedding:
            told["embedding"] = torch.Size([self.clips, layout.embedding])

        def at(place: str, x: Tensor, beside: Mapping[str, Tensor]) -> Tensor:
            assert place in watched, f"watch must be told of {place} before its layers run"
            for name, size in told.items():
                assert beside[name].shape == size, f"{place}: {name} is {tuple(beside[name].shape)}, not {tuple(size)}"
            visited.append((place, tuple(x.shape)))
            return x

        with torch.no_grad():
            out = self.family().run(self.frame().eval(), inputs, at, lambda name, x, skips: watched.append(name))
        assert visited == [(place.name, self.shape(place)) for place in layout.places]
        made = self.shape(layout.made) if layout.made is not None else tuple(inputs["x"].shape)
        assert tuple(out.shape) == made, f"{tuple(inputs['x'].shape)} came out as {tuple(out.shape)}, not {made}"
        assert out.isfinite().all(), "the output is not finite"

    def test_what_a_layer_returns_goes_on(self) -> None:
        """At every place: else a chosen layer would cost and do nothing."""
        frame, inputs = self.frame().eval(), self.inputs()

        def run(changed: str) -> Tensor:
            return self.family().run(frame, inputs, lambda name, x, beside: x + torch.randn_like(x) * (name == changed))

        with torch.no_grad():
            plain = run("")
            for place in self.layout().places:
                assert not torch.allclose(run(place.name), plain), f"what {place.name} returns is thrown away"

    def test_clips_of_a_batch_do_not_mix(self) -> None:
        frame, inputs = self.frame().eval(), self.inputs()
        first = {name: value[:1] for name, value in inputs.items() if name in ("timestep", "context")}
        alone = {"x": inputs["x"][: self.frames], "frames": self.frames, **first}
        with torch.no_grad():
            together, one = (self.family().run(frame, given, _nothing) for given in (inputs, alone))
            assert torch.allclose(one, together[: len(one)], atol=1e-5)

    def test_the_plan_is_that_of_the_module(self) -> None:
        space = self.space()
        plan = trace_plan(space)
        for arrangement in (space.empty(), plan.largest()):
            network = VideoNetwork(space, arrangement)
            assert sum(p.numel() for p in network.parameters()) == plan.parameters(arrangement)
        places = [point.name for point in plan.points if point.kind == "position"]
        assert places == [place.name for place in self.layout().places]

    def test_parts_run_by_themselves(self) -> None:
        layout, frame, inputs = self.layout(), self.frame().eval(), self.inputs()
        for part in layout.parts:
            module: Any = self.family().part(frame, part.name)
            beside: tuple[Tensor, ...] = ()
            if "context" in inputs:
                beside = (torch.randn(self.clips, module.embedding), inputs["context"])
            with torch.no_grad():
                out = module(torch.randn(self.shape(part)), *beside)
            assert out.isfinite().all(), f"part {part.name} gives what is not finite"

    def test_units_are_disjoint_pieces_of_the_frame(self) -> None:
        frame = self.frame()
        units = list(self.family().units(frame))
        assert units, "a frame without units can be neither sharded nor checkpointed"
        inside = [part for unit in units for part in unit.modules()]
        assert len({id(part) for part in inside}) == len(inside), "a unit holds another, or comes twice"
        assert {id(part) for part in inside} <= {id(part) for part in frame.modules()}

    def test_computing_again_changes_nothing(self) -> None:
        """Activation checkpoints of every unit: the same output and gradients, and each unit run a second time."""
        plain, again = self.frame().train(), self.frame().train()
        runs: list[int] = []
        for index, unit in enumerate(self.family().units(again)):
            _count_runs(unit, runs, index)
            recompute(unit)
        self._same(plain, again)
        assert sorted(runs) == sorted([*range(index + 1)] * 2), "every unit must run once and be computed once again"

    def test_compiled_unit_by_unit_it_is_the_same(self) -> None:
        import torch._dynamo

        plain, compiled = self.frame().train(), self.frame().train()
        torch._dynamo.reset()
        for unit in self.family().units(compiled):
            unit.compile(dynamic=False, backend="eager")
        with warnings.catch_warnings():  # torch warns about its own internals while it compiles
            warnings.simplefilter("ignore")
            self._same(plain, compiled)

    def test_sharded_unit_by_unit_it_is_the_same(self, tmp_path: Path) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        plain, sharded = self.frame().train(), self.frame().train()
        whole = _Whole(self.family(), sharded)
        with one_process(tmp_path):
            mesh = init_device_mesh("cpu", (1,))
            for part in (*self.family().units(sharded), whole):
                fully_shard(part, mesh=mesh)
            self._same(plain, whole)

    def test_a_model_of_the_same_kind_is_inherited_whole(self) -> None:
        family, frame, given = self.family(), self.frame(0), self.frame(1)
        if type(given).__name__ not in family.givers():
            return
        found = family.inherit(frame, given)
        assert found.copied == found.total == sum(p.numel() for p in frame.parameters()) and not found.fresh
        for name, tensor in given.state_dict().items():
            assert torch.equal(frame.state_dict()[name], tensor), f"{name} did not come over"

    def test_the_encoder_sees_what_the_frame_sees(self) -> None:
        family, frame, inputs = self.family(), self.frame().eval(), self.inputs()
        features = family.features(frame)
        channels = {place.name: place.channels for place in self.layout().places}
        assert list(features) == [name for name in channels if name in features], "features must be places, in order"
        assert all(channels[name] == width for name, width in features.items())
        before = set(frame.state_dict())
        seen: list[dict[str, Tensor]] = []
        for one in (frame, family.encoder(frame)) if features else ():
            found: dict[str, Tensor] = {}
            with torch.no_grad():
                family.run(one, inputs, lambda name, x, beside, found=found: found.setdefault(name, x))  # type: ignore[misc]
            seen.append({name: found[name] for name in features})
        assert all(torch.equal(seen[0][name], seen[1][name]) for name in features)
        assert set(frame.state_dict()) == before, "the frame itself must stay as it is"

    def test_it_is_drawn(self) -> None:
        """Every moment once, whether the skips are known or only the places."""
        plan = trace_plan(self.space())
        moments = [point.name for point in plan.points]
        for names in (moments, [place.name for place in self.layout().places]):
            drawn = self.family().picture(names, {})
            assert isinstance(drawn, Picture) and drawn.enters and drawn.leaves
            shown = [name for row in drawn.rows for name in (row.left, row.right) if name is not None]
            assert sorted(shown) == sorted(names)

    def _same(self, plain: nn.Module, other: nn.Module) -> None:
        """The same answer and the same gradients."""
        both = [one if isinstance(one, _Whole) else _Whole(self.family(), one) for one in (plain, other)]
        outs = [whole(self.inputs()) for whole in both]
        for out in outs:
            out.square().mean().backward()
        assert torch.allclose(outs[0], outs[1], atol=1e-5), "the outputs differ"
        for (name, one), (_, two) in zip(both[0].named_parameters(), both[1].named_parameters(), strict=True):
            if one.grad is None:
                continue
            gradient: Any = two.grad
            assert gradient is not None, f"{name} gets no gradient"
            gradient = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            assert torch.allclose(one.grad, gradient, atol=1e-5), f"the gradients of {name} differ"


class _Whole(nn.Module):
    """A frame that is run by being called, as a supernet is: sharding gathers its weights then."""

    def __init__(self, family: Family, frame: nn.Module) -> None:
        super().__init__()
        self.family, self.frame = family, frame

    def forward(self, inputs: Mapping[str, Any]) -> Tensor:
        return self.family.run(self.frame, inputs, _nothing)


def _nothing(place: str, x: Tensor, beside: Mapping[str, Tensor]) -> Tensor:
    return x


def _count_runs(unit: nn.Module, runs: list[int], index: int) -> None:
    plain = unit.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        runs.append(index)
        return plain(*args, **kwargs)

    unit.forward = forward


@contextmanager
def one_process(folder: Path) -> Iterator[None]:
    """A process group of this process alone."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder / 'group'}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
