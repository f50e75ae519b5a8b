"""Ways to fine-tune a built model.

On images and videos together, and adversarially down to a few steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.errors import AnswerIsNo, NasError

if TYPE_CHECKING:
    from nas.recipes.config import FinetuneConfig
    from nas.training.config import StageConfig
    from nas.training.distributed import World
    from nas.training.loop import Loop, Stage

STAGES = ("joint", "adversarial")


def finetune(
    model: Path,
    stage: str,
    config: FinetuneConfig,
    out: Path,
    *,
    progress: Callable[[int, Mapping[str, float]], None] | None = None,
    warn: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Fine-tune ``model`` into ``out``, a model folder like it; go on where ``out`` holds a part of that work.

    Checkpoints, the log (``metrics.jsonl``) and ``config.yaml`` lie in ``out/finetune``. The model itself, with the
    averaged weights, appears in ``out`` at the end, whole. Several processes that torchrun, accelerate or
    ``nas finetune --processes`` started share the clips of a step.

    Returns:
        Path, stage, steps, the last losses, and whether this process is the main one.

    Raises:
        NasError: if the model is none, ``out`` holds another fine-tuning, a step goes wrong again and again, or another
            process ended.
        AnswerIsNo: if the discriminator collapses; ``out`` then holds the model of the last good checkpoint.
    """
    import os

    import torch

    from nas.training.distributed import LAUNCHED, PEER_LOST, PeerLost, World

    if stage not in STAGES:
        raise NasError(f"--stage must be one of {', '.join(STAGES)}, but is {stage!r}")
    if out.resolve() == model.resolve():
        raise NasError(f"--out is the model itself ({model}); give another folder, the model is kept as it is")
    settings = config.stage(stage)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    world = World.open(settings.device, f"{stage}.device")
    try:
        return _finetune(model, stage, config, out, world, progress, warn)
    except PeerLost:
        if LAUNCHED in os.environ:  # who started us saw which process it was, and says so once
            raise SystemExit(PEER_LOST) from None
        raise
    finally:
        world.close()


def _finetune(
    model: Path,
    stage: str,
    config: FinetuneConfig,
    out: Path,
    world: World,
    progress: Callable[[int, Mapping[str, float]], None] | None,
    warn: Callable[[str], None],
) -> dict[str, Any]:
    from contextlib import nullcontext

    from nas.data.lengths import fits
    from nas.files import only_leftovers
    from nas.model.pipeline import load_pipeline, save_pipeline
    from nas.recipes.config import FOLDER, AdversarialConfig
    from nas.training.batches import Batches
    from nas.training.checkpoint import sole_writer
    from nas.training.loop import Loop

    settings = config.stage(stage)
    pipeline = load_pipeline(model).to(world.device)
    origin = pipeline.fingerprint()
    folder = out / FOLDER
    if out.is_dir() and not folder.is_dir() and not only_leftovers(out):
        raise NasError(f"{out} is not empty and holds no fine-tuning; give a new or empty folder to --out")
    check = fits(pipeline.tokenizer, pipeline.text_encoder.config.max_position_embeddings)
    batches = Batches(pipeline.unet.space, config.data, settings, config.seed, world, check)
    pipeline.check_prompts(batches.captions)
    work = _work(pipeline, batches, settings, config.seed, world)
    facts = {
        "stage": stage,
        "model": origin,
        "seed": config.seed,
        "data": config.data.model_dump(mode="json", exclude={"cache", "outside"}),
    }
    world.wait()  # all have looked at the folder before it is written to
    if world.main:
        _write_settings(folder, config)
    loop = Loop(work, folder, facts, config.seed, warn)
    collapsed: AnswerIsNo | None = None
    try:
        with sole_writer(folder) if world.main else nullcontext(), world.together():
            loop.run(progress)
    except AnswerIsNo as answer:
        collapsed = answer
    pipeline = _averaged(loop, pipeline, model)
    shapes = [[clip.frames, clip.height, clip.width] for clip in batches.clips]
    few = settings if isinstance(settings, AdversarialConfig) else None
    how = {"sigmas": list(few.levels), "guidance": 1.0, "renoise": few.renoise} if few is not None else {}
    pipeline.set_sampling(**how, clips=shapes)
    pipeline.unet.eval()
    pipeline.text_encoder.eval()
    if world.main:
        save_pipeline(pipeline.to("cpu"), out)
    world.wait()
    if collapsed is not None:
        raise AnswerIsNo(f"{out}: {collapsed}. The model there is that one") from collapsed
    last = {name: value for name, value in (loop.rows[-1] if loop.rows else {}).items() if name.startswith("loss")}
    return {"model": str(out), "stage": stage, "steps": loop.step, **last, "main": world.main}


def _write_settings(folder: Path, config: FinetuneConfig) -> None:
    import yaml

    from nas.config import CONFIG_FILE
    from nas.files import write_whole

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / CONFIG_FILE).is_file():
        write_whole(folder / CONFIG_FILE, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _work(pipeline: Any, batches: Any, settings: StageConfig, seed: int, world: World) -> Stage:
    """The stage that the settings are of."""
    from nas.recipes.adversarial import Adversarial
    from nas.recipes.config import AdversarialConfig, JointConfig
    from nas.recipes.joint import Joint
    from nas.training.engine import Engine

    engine = Engine(settings, world)
    if isinstance(settings, AdversarialConfig):
        return Adversarial(pipeline, batches, settings, seed, engine)
    assert isinstance(settings, JointConfig)
    return Joint(pipeline, batches, settings, engine)


def _averaged(loop: Loop[Any], pipeline: Any, model: Path) -> Any:
    """The pipeline with the averaged weights; a new one where the trained one is split over processes."""
    import torch

    from nas.model.pipeline import load_pipeline

    if not loop.stage.engine.sharded:
        loop.load_average()
        return pipeline
    values, made = loop.whole_average(), load_pipeline(model)
    parts = {"unet": made.unet, "text": made.text_encoder}
    with torch.no_grad():
        for name in loop.stage.averaged:
            for inner, parameter in parts[name].named_parameters():
                parameter.copy_(values[f"{name}.{inner}"])
    return made
