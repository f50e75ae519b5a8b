"""A caption over the text encoder's tokens is refused before step 1, by file and line, by every command."""

from __future__ import annotations

from pathlib import Path

import pytest
from latent_fixtures import save_allegro, save_text, small_space, video_folder
from training_fixtures import short

from nas.config import DataConfig, resolve
from nas.data import open_data
from nas.data.caching import CacheConfig, build_cache
from nas.data.lengths import check_lengths, fits, words_fit
from nas.errors import NasError
from nas.pretrained.text import word_tokenizer
from nas.run.job import train_supernet
from nas.supernet.stage import train
from search_spaces.space import Space

LONG = "a ball " * 20


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = video_folder(tmp_path / "videos", count=2)
    with (folder / "captions.csv").open("a") as captions:
        captions.write(f"1.mkv,{LONG}\n")
    return folder


def never(*_: object, **__: object) -> None:
    pytest.fail("decoded before the captions were checked")


def test_training_refuses_before_anything_is_decoded(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nas.data.videos.decode_all", never)
    sets = [
        "data.source=folder",
        f"data.path={videos}",
        f"data.cache={tmp_path / 'cache'}",
        "train.steps=1",
        "train.warmup_steps=0",
    ]
    with pytest.raises(
        NasError, match=r"captions.csv:4: a caption has 42 tokens, the text encoder takes 16: .*shorten"
    ):
        train_supernet(resolve("tiny", None, None, sets), tmp_path / "run")
    assert not (tmp_path / "run" / "supernet").exists()


def test_the_cache_refuses_before_anything_is_encoded(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nas.data.caching.cached_frames", never)
    config = CacheConfig(save_allegro(tmp_path / "allegro"), save_text(tmp_path / "text"))
    with pytest.raises(NasError, match=r"captions.csv:4: a caption has 42 tokens, the text encoder takes 8"):
        build_cache(DataConfig(source="folder", path=videos), small_space(tmp_path), config, tmp_path / "cache")


def test_whoever_opens_data_for_a_tokenizer_has_it_checked(videos: Path, tmp_path: Path):
    clip, config = Space.load("tiny").clip("training"), DataConfig(source="folder", path=videos, cache=tmp_path / "c")
    for check in (words_fit(Space.load("tiny")), fits(word_tokenizer(["a ball"], 16), 16)):
        with pytest.raises(NasError, match="captions.csv:4: a caption has 42 tokens"):
            open_data(config, clip, check=check)
    data = open_data(config, clip)
    with pytest.raises(NasError, match="a caption has 42 tokens, the text encoder takes 16"):
        train(Space.load("tiny"), data, short(steps=1), tmp_path / "run")
    assert not list((tmp_path / "run").glob("step-*"))


def test_all_that_are_too_long_are_told_at_once():
    said = [(f"a {i} " * 9, f"c.csv:{i}") for i in range(8)] + [("a ball", "c.csv:9")]
    with pytest.raises(NasError, match=r"^c.csv:0: .*Too long, too: c.csv:1, c.csv:2, c.csv:3 and 4 more$"):
        check_lengths(said, word_tokenizer(["a"], 16), 16)
    check_lengths(said[-1:], word_tokenizer(["a"], 16), 16)
