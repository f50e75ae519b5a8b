"""The cache of latents: what it holds, what it refuses, and that it survives a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from latent_fixtures import save_allegro, save_image_autoencoder, save_text, small_space, video_folder, write_video
from training_fixtures import losses, short

from nas.config import DataConfig
from nas.data import open_data
from nas.data.cached import CachedLatents, LatentCache, read_index
from nas.data.caching import CacheConfig, Progress, build_cache
from nas.data.frames import FrameSpec, cached_frames
from nas.data.videos import as_video
from nas.errors import NasError
from nas.pretrained.autoencoder import VideoAutoencoder, tiled
from nas.pretrained.text import TextEncoder
from nas.supernet.stage import train
from nas.supernet.trained import load_supernet
from nas.training.checkpoint import sole_writer
from search_spaces.space import Space


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Models, videos, a space and a cache of all that, made once."""
    folder = tmp_path_factory.mktemp("shop")
    found: dict[str, Any] = {
        "space": small_space(folder),
        "autoencoder": save_allegro(folder / "allegro"),
        "text": save_text(folder / "clip"),
        "videos": video_folder(folder / "videos"),
        "cache": folder / "cache",
    }
    found["summary"] = build(found, found["cache"])
    return found


def build(shop: dict[str, Any], out: Path, **changes: Any) -> dict[str, Any]:
    data = DataConfig(source="folder", path=changes.pop("videos", shop["videos"]), **changes.pop("data", {}))
    models = {"autoencoder": shop["autoencoder"], "text": shop["text"]}
    progress = changes.pop("progress", lambda p: None)
    return build_cache(
        data, changes.pop("space", shop["space"]), CacheConfig(**{**models, **changes}), out, progress=progress
    )


def opened(shop: dict[str, Any], split: Any = "train", cache: Path | None = None) -> CachedLatents:
    config = DataConfig(source="cache", path=cache or shop["cache"])
    data = open_data(config, shop["space"].clip("training"), split, 0)
    assert isinstance(data, CachedLatents)
    return data


def test_every_segment_is_cut_into_clips_and_the_splits_share_no_frame(shop: dict[str, Any]) -> None:
    """40 frames are 4 clips of 8 for training and one for validation, with a still beside each of the former."""
    summary = shop["summary"]
    assert (summary["videos"], summary["clips"], summary["validation_clips"], summary["stills"]) == (3, 15, 3, 12)
    data = opened(shop)
    latents = [data.parts[0][i]["video"] for i in range(12)]
    assert all(tensor.shape == (2, 4, 4, 4) and tensor.dtype == torch.float32 for tensor in latents)
    assert len({tuple(tensor.flatten().tolist()) for tensor in latents}) == 12  # a pass shows each clip once
    held = [item["video"] for item in opened(shop, "validation")]
    assert len(held) == 3 and not any(torch.equal(a, b) for a in held for b in latents)


def test_cached_latents_and_text_are_what_the_models_give(shop: dict[str, Any], tmp_path: Path) -> None:
    autoencoder, text = VideoAutoencoder.load(shop["autoencoder"]), TextEncoder.pretrained(shop["text"])
    frames = cached_frames(shop["videos"] / "0.mkv", FrameSpec(32, 32, 8.0, 1.0), tmp_path)
    assert frames.shape[1:3] == (32, 38)
    clip = as_video(frames.read(8, 8)[:, :, 3:35])
    cached = [item["video"] for item in (opened(shop).parts[0][i] for i in range(12)) if item["caption"][2] == "b"]
    wanted = autoencoder.encode(clip)
    assert min(float((wanted - latents).abs().max()) for latents in cached) < 2e-3
    states = opened(shop).cache.text("a blue ball falls")
    assert states is not None and torch.allclose(states, text(["a blue ball falls"])[0], atol=2e-3)


def test_training_on_a_cache_can_be_loaded_and_shows_frames(shop: dict[str, Any], tmp_path: Path) -> None:
    config = short(steps=6, checkpoint_every=3, validate_every=3, sample_every=3)
    train(shop["space"], opened(shop), config, tmp_path, seed=1, validation=opened(shop, "validation"))
    assert len(losses(tmp_path)) == 6
    supernet, text, step = load_supernet(shop["space"], tmp_path)
    assert step == 6 and text(["a red ball falls", "a word fast"]).shape == (2, 8, 16)
    from PIL import Image

    with Image.open(
        tmp_path / "strips" / "step-00000006.png"
    ) as strip:  # two captions of eight frames, enlarged, apart
        assert strip.size == (8 * 64 + 7 * 4, 2 * 64 + 4)
    shown = json.loads((tmp_path / "strips" / "captions.json").read_text())
    assert sorted(shown) == ["a blue ball falls", "a red ball falls"]


def test_training_refuses_pixels_where_latents_are_wanted_and_latents_of_another_shape(
    shop: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(NasError, match="does not fit space tiny: time is 4 there, 1 in the space"):
        train(Space.load("tiny"), opened(shop), short(), tmp_path)


def test_run_again_it_encodes_only_what_is_new(shop: dict[str, Any], tmp_path: Path) -> None:
    videos = video_folder(tmp_path / "videos", count=1)
    first = build(shop, tmp_path / "cache", videos=videos)
    before = {path.name: path.read_bytes() for path in (tmp_path / "cache").glob("*.safetensors")}
    write_video(videos / "new.mkv", 16, seed=9)
    with (videos / "captions.csv").open("a") as captions:
        captions.write("new.mkv,a ball rises\n")
    second = build(shop, tmp_path / "cache", videos=videos)
    assert second["clips"] == first["clips"] + 2
    now = {path.name: path.read_bytes() for path in (tmp_path / "cache").glob("*.safetensors")}
    assert before.items() < now.items() and len(now) == 2


def test_a_caption_of_several_videos_outlives_the_first_of_them(shop: dict[str, Any], tmp_path: Path) -> None:
    videos, cache = video_folder(tmp_path / "videos", count=3, frames=24), tmp_path / "cache"
    build(shop, cache, videos=videos)
    captions = (videos / "captions.csv").read_text()
    (videos / "captions.csv").write_text(captions.replace("0.mkv,a blue ball falls", "0.mkv,a ball rises"))
    for _ in range(2):
        build(shop, cache, videos=videos)
        data = LatentCache(cache)
        assert {entry.caption for entry in data.entries} == {"a ball rises", "a red ball falls", "a blue ball falls"}
        assert all(data.text(caption) is not None for caption in ("", *(entry.caption for entry in data.entries)))


def test_two_cannot_make_one_cache_at_once(shop: dict[str, Any]) -> None:
    with sole_writer(shop["cache"]), pytest.raises(NasError, match="another process is writing there; wait for it"):
        build(shop, shop["cache"])


def test_a_video_that_changed_is_encoded_again(shop: dict[str, Any], tmp_path: Path) -> None:
    videos = video_folder(tmp_path / "videos", count=2, frames=24)
    build(shop, tmp_path / "cache", videos=videos)
    write_video(videos / "0.mkv", 40, seed=77)
    build(shop, tmp_path / "cache", videos=videos)
    names = [entry.name for entry in LatentCache(tmp_path / "cache").entries if not entry.still]
    assert len(names) == 5 + 3
    assert opened(shop, cache=tmp_path / "cache").cache.text("a blue ball falls") is not None


SCRIPT = """
import sys, time
from pathlib import Path
from nas.data.caching import CacheConfig, build_cache
from nas.config import DataConfig
from search_spaces.space import Space
space, autoencoder, text, videos, out = sys.argv[1:]
def told(progress):
    print(progress.done, flush=True)
    time.sleep(0.3)
config = CacheConfig(autoencoder, text, shard_mb=1e-6)
build_cache(DataConfig(source="folder", path=videos), Space.load(space), config, Path(out), progress=told)
"""


def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_latents(shop: dict[str, Any], tmp_path: Path) -> None:
    space = Path(shop["cache"]).parent / "small_latents.yaml"
    arguments = [str(space), shop["autoencoder"], shop["text"], str(shop["videos"]), str(tmp_path / "cache")]
    started = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert started.stdout is not None
    for line in started.stdout:
        if int(line) == 2:
            started.send_signal(signal.SIGKILL)
            break
    started.wait()
    started.stdout.close()
    kept = {line["path"] for line in read_index(tmp_path / "cache")}
    assert 1 <= len(kept) <= 2
    (tmp_path / "cache" / ".latents-00099.safetensors.partial").write_bytes(b"half")
    with (tmp_path / "cache" / "index.jsonl").open("a") as index:
        index.write('{"path": "cut sho')
    seen: list[Progress] = []
    summary = build(shop, tmp_path / "cache", progress=seen.append)
    assert summary["clips"] == shop["summary"]["clips"] and summary["stills"] == shop["summary"]["stills"]
    whole, again = opened(shop), opened(shop, cache=tmp_path / "cache")
    keys = {entry.name: entry for entry in whole.cache.entries}
    for entry in again.cache.entries:
        own = keys[entry.name]
        assert torch.equal(again.cache.tensor(entry.shard, entry.name), whole.cache.tensor(own.shard, own.name))
    assert not list((tmp_path / "cache").glob(".*.partial"))


def test_a_cache_of_another_model_is_refused_in_one_line(shop: dict[str, Any], tmp_path: Path) -> None:
    other, words = save_allegro(tmp_path / "other", seed=1), save_text(tmp_path / "words", seed=1)
    before = (shop["cache"] / "index.jsonl").read_bytes()
    for changes in ({"autoencoder": other}, {"text": words}):
        with pytest.raises(NasError, match="is a cache of another (autoencoder|text) model") as caught:
            build(shop, shop["cache"], **changes)
        assert "\n" not in str(caught.value)
    assert (shop["cache"] / "index.jsonl").read_bytes() == before
    # A training does not go on with it either.
    train(shop["space"], opened(shop), short(steps=2), tmp_path / "run", seed=1)
    build(shop, tmp_path / "cache", autoencoder=other)
    with pytest.raises(NasError, match="models differ: autoencoder is") as caught:
        train(shop["space"], opened(shop, cache=tmp_path / "cache"), short(steps=2), tmp_path / "run", seed=1)
    assert "\n" not in str(caught.value)
    # And a shard that was carried over is found out.
    strange = next((tmp_path / "cache").glob("*.safetensors"))
    line = json.loads((shop["cache"] / "index.jsonl").read_text().splitlines()[0])
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "cache.json").write_bytes((shop["cache"] / "cache.json").read_bytes())
    (mixed / strange.name).write_bytes(strange.read_bytes())
    (mixed / "index.jsonl").write_text(json.dumps({**line, "bytes": strange.stat().st_size}) + "\n")
    with pytest.raises(NasError, match="made with another autoencoder model"):
        LatentCache(mixed)


def test_models_that_do_not_fit_the_space_are_refused(shop: dict[str, Any], tmp_path: Path) -> None:
    images = save_image_autoencoder(tmp_path / "images")
    with pytest.raises(
        NasError, match="divides time by 1 and space by 8 with 4 channels, but space small_latents wants 4"
    ):
        build(shop, tmp_path / "cache", autoencoder=images)
    wide = save_text(tmp_path / "wide", width=32)
    with pytest.raises(NasError, match="8 tokens of width 32, but space small_latents wants 8 of 16"):
        build(shop, tmp_path / "cache", text=wide)
    for changes, message in (
        ({"autoencoder": str(tmp_path / "nowhere")}, "no autoencoder could be loaded"),
        ({"autoencoder": shop["text"]}, "no autoencoder could be loaded|holds a model of no stated kind"),
        ({"text": str(tmp_path / "nowhere")}, "no CLIP text model could be loaded"),
    ):
        with pytest.raises(NasError, match=message) as caught:
            build(shop, tmp_path / "cache", **changes)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_an_image_autoencoder_serves_a_space_that_leaves_time_alone(shop: dict[str, Any], tmp_path: Path) -> None:
    space = small_space(tmp_path, time=1)
    images = save_image_autoencoder(tmp_path / "images")
    build(shop, tmp_path / "cache", space=space, autoencoder=images, stills=0)
    data = opened(shop, cache=tmp_path / "cache")
    assert data[0]["video"].shape == (8, 4, 4, 4) and data.stills(0)[0]["video"].shape == (1, 4, 4, 4)
    train(space, data, short(steps=2), tmp_path / "run", seed=1)
    assert len(losses(tmp_path / "run")) == 2


def test_what_is_no_use_is_counted_with_its_reason_and_the_rest_is_encoded(
    shop: dict[str, Any], tmp_path: Path
) -> None:
    videos = video_folder(tmp_path / "videos", count=1, frames=16)
    (videos / "empty.mkv").touch()
    (videos / "noise.mkv").write_bytes(b"no video at all" * 100)
    write_video(videos / "short.mkv", 3)
    write_video(videos / "odd.mkv", 16, height=51, width=33)
    write_video(videos / "silent.mkv", 16)
    rows = "empty.mkv,a ball\nnoise.mkv,a ball\nshort.mkv,a ball\nodd.mkv,a ball\ngone.mkv,a ball\n"
    with (videos / "captions.csv").open("a") as captions:
        captions.write(rows)
    summary = build(shop, tmp_path / "cache", videos=videos)
    assert summary["videos"] == 2 and summary["clips"] == 4
    skipped = "\n".join(summary["skipped"])
    for reason in (
        "empty.mkv: the file is empty",
        "noise.mkv: does not decode",
        "short.mkv: no captioned segment is as long as a clip",
        "gone.mkv: no such file",
        "silent.mkv: has no caption",
    ):
        assert reason in skipped
    assert len(summary["skipped"]) == 5
    assert len(opened(shop, cache=tmp_path / "cache").skipped) == 5


def test_a_damaged_cache_is_one_line(shop: dict[str, Any], tmp_path: Path) -> None:
    build(shop, tmp_path / "cache", videos=video_folder(tmp_path / "videos", count=1))
    shard = next((tmp_path / "cache").glob("*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(NasError, match="run nas cache again") as caught:
        opened(shop, cache=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    build(shop, tmp_path / "cache", videos=tmp_path / "videos")  # which does make it whole
    assert opened(shop, cache=tmp_path / "cache")[0]["video"].shape == (2, 4, 4, 4)
    (tmp_path / "cache" / "cache.json").write_text("{}")
    with pytest.raises(NasError, match="make the cache again"):
        opened(shop, cache=tmp_path / "cache")
    with pytest.raises(NasError, match="no cache.json there"):
        opened(shop, cache=tmp_path / "videos")
    with pytest.raises(NasError, match="not empty and holds no cache.json"):
        build(shop, tmp_path / "videos")


def test_a_full_disk_is_one_line_and_what_was_made_stays(
    shop: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    real = safetensors.torch.save_file

    def full(tensors: Any, path: str, **more: Any) -> None:
        if "00001" in path:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device", path)
        real(tensors, path, **more)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(NasError, match="the disk is full; free some space") as caught:
        build(shop, tmp_path / "cache", shard_mb=1e-6)
    assert "\n" not in str(caught.value) and not list((tmp_path / "cache").glob(".*.partial"))
    monkeypatch.undo()
    assert build(shop, tmp_path / "cache")["clips"] == shop["summary"]["clips"]


def test_videos_of_other_shapes_go_to_their_bucket_and_a_batch_comes_from_one(
    shop: dict[str, Any], tmp_path: Path
) -> None:
    videos = video_folder(tmp_path / "videos", count=2)
    write_video(videos / "wide.mkv", 40, height=40, width=80)
    write_video(videos / "brief.mkv", 16, height=40, width=80)
    with (videos / "captions.csv").open("a") as captions:
        captions.write("wide.mkv,a ball\nbrief.mkv,a ball rises\n")
    buckets = {"buckets": ["8x32x64", "24x32x64"]}
    build(shop, tmp_path / "cache", videos=videos, data=buckets)
    data = opened(shop, cache=tmp_path / "cache")
    shapes = {part[0]["video"].shape for part in data.parts}
    assert shapes == {(2, 4, 4, 4), (2, 4, 4, 8), (6, 4, 4, 8)}
    train(shop["space"], data, short(steps=6), tmp_path / "run", seed=1)
    assert len(losses(tmp_path / "run")) == 6
    with pytest.raises(NasError, match="frames of 6x32x32 must divide by 4"):
        build(shop, tmp_path / "other", data={"buckets": ["6x32x32"]})


def test_tiles_cover_everything_and_blend_to_the_same_as_one_piece() -> None:
    """With a network that sees no further than its own pixels, down and up."""
    x = torch.rand(3, 28, 40, 72, generator=torch.Generator().manual_seed(0))

    def down(tile: torch.Tensor) -> torch.Tensor:
        assert all(size <= limit for size, limit in zip(tile.shape[1:], (24, 32, 32), strict=True))
        return torch.nn.functional.avg_pool3d(tile, (4, 8, 8))

    small = tiled(down, x, (24, 32, 32), (8, 8, 8), (4, 8))
    assert torch.allclose(small, torch.nn.functional.avg_pool3d(x, (4, 8, 8)), atol=1e-6)

    def up(tile: torch.Tensor) -> torch.Tensor:
        return tile.repeat_interleave(4, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)

    assert torch.allclose(tiled(up, small, (6, 4, 4), (2, 1, 1), (-4, -8)), up(small), atol=1e-6)


def test_a_large_video_is_encoded_to_its_edges(tmp_path: Path) -> None:
    """diffusers' own tiling leaves zeros past its last whole stride."""
    autoencoder = VideoAutoencoder.load(save_allegro(tmp_path / "allegro"))
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(28, 3, 40, 72, generator=generator) * 2 - 1
    latents = autoencoder.encode(video)
    assert latents.shape == (7, 4, 5, 9)
    assert (latents.flatten(2).std(-1) > 1e-4).all()
    decoded = autoencoder.decode(latents)
    assert decoded.shape == video.shape and bool(torch.isfinite(decoded).all())
    small = video[:8, :, :32, :32]
    one = autoencoder.model.quant_conv(autoencoder.model.encoder(small.transpose(0, 1)[None])[0].transpose(0, 1))
    assert torch.allclose(autoencoder.encode(small), one[:, :4] * autoencoder.model.config.scaling_factor, atol=1e-5)


def test_an_image_is_encoded_as_one_latent_frame(tmp_path: Path) -> None:
    autoencoder = VideoAutoencoder.load(save_allegro(tmp_path / "allegro"))
    assert autoencoder.encode(torch.rand(1, 3, 32, 32)).shape == (1, 4, 4, 4)


def test_the_digest_is_of_the_weights_and_not_of_their_place(tmp_path: Path) -> None:
    one, copy, other = (save_allegro(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    digests = [VideoAutoencoder.load(path).digest for path in (one, copy, other)]
    assert digests[0] == digests[1] != digests[2]
