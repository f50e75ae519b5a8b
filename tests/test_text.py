"""Captions to vectors: words of the captions, nothing cut silently."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_fixtures import clips, tiny

from nas.errors import NasError
from nas.pretrained.text import TextEncoder, drop_captions


def encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder.small(tiny(), clips().captions).eval()


def test_captions_of_two_objects_fit_and_longer_ones_are_refused() -> None:
    text = encoder()
    states = text(["a red circle moving left and a blue square moving up", ""])
    assert states.shape == (2, 16, 32)
    with pytest.raises(NasError, match="takes 16"):
        text(["a red circle moving left and " * 5])


def test_words_never_seen_are_one_unknown_word_and_case_does_not_matter() -> None:
    text = encoder()
    one, other = text.tokenize(["a zeppelin"]), text.tokenize(["a submarine"])
    assert torch.equal(one, other)
    assert torch.equal(text.tokenize(["A RED circle"]), text.tokenize(["a red circle"]))
    assert not torch.equal(text.tokenize(["a red circle"]), text.tokenize(["a blue circle"]))


def test_saved_and_loaded_it_reads_the_same(tmp_path: Path) -> None:
    text = encoder()
    text.save(tmp_path)
    loaded = TextEncoder.load(tmp_path)
    loaded.load_state_dict(text.state_dict())
    captions = ["a red circle moving left"]
    with torch.no_grad():
        assert torch.allclose(loaded.eval()(captions), text(captions), atol=1e-6)
    with pytest.raises(NasError, match="no tokenizer"):
        TextEncoder.load(tmp_path / "nowhere")


def test_about_the_share_that_is_asked_for_is_dropped() -> None:
    captions = ["a red circle"] * 1000
    dropped = drop_captions(captions, 0.1, torch.Generator().manual_seed(0))
    assert 60 < dropped.count("") < 140
    assert drop_captions(captions, 0.0, torch.Generator()) == captions


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_damaged_tokenizer_is_one_line(name: str, share: float, tmp_path: Path) -> None:
    encoder().save(tmp_path)
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(NasError, match="no tokenizer") as caught:
        TextEncoder.load(tmp_path)
    assert "\n" not in str(caught.value)
