"""Text for training and sampling: a small encoder trained along with the captions' own words, or a pre-trained one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from nas.errors import NasError
from search_spaces.space import Space

#: What loading somebody's model may end in: nothing there, another format, damaged weights.
LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError)
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<start>", "<end>"


class TextEncoder(nn.Module):
    """Captions to one vector a token.

    Args:
        tokenizer: a transformers tokenizer. model: a transformers ``CLIPTextModel``.

    The number of tokens is the model's; a longer caption is refused, never cut.
    """

    def __init__(self, tokenizer: Any, model: nn.Module) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.model = model

    @classmethod
    def small(cls, space: Space, captions: Iterable[str]) -> TextEncoder:
        """A two-layer encoder of the space's width, with a word-level vocabulary of the captions."""
        from transformers import CLIPTextConfig, CLIPTextModel

        tokenizer = word_tokenizer(captions, space.text.tokens)
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=space.text.dim,
            intermediate_size=4 * space.text.dim,
            num_hidden_layers=2,
            num_attention_heads=max(1, space.text.dim // 16),
            max_position_embeddings=space.text.tokens,
            projection_dim=space.text.dim,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return cls(tokenizer, CLIPTextModel(config))

    @classmethod
    def pretrained(cls, source: str) -> TextEncoder:
        """A CLIP text model and its tokenizer, by hub id or folder; of a pipeline its ``text_encoder`` is taken.

        Raises:
            NasError: if it cannot be loaded.
        """
        from transformers import AutoTokenizer, CLIPTextModel

        from nas.sample import no_bars

        try:
            check_source(source)
            words, states = ("tokenizer", "text_encoder") if has_part(source, "text_encoder") else ("", "")
            with no_bars():
                tokenizer = AutoTokenizer.from_pretrained(source, subfolder=words)
                model = CLIPTextModel.from_pretrained(source, subfolder=states)
        except LOADING_ERRORS as error:
            raise NasError(
                f"{source}: no CLIP text model could be loaded ({first_line(error)}); give a hub id or a folder with "
                "its config.json, weights and tokenizer"
            ) from error
        return cls(tokenizer, model.eval().requires_grad_(False))

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint must share with this text; its tokenizer is saved beside, so nothing more."""
        return {}

    @property
    def max_tokens(self) -> int:
        return int(self.model.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """(B, L) token numbers.

        Raises:
            NasError: if a caption has more tokens than the encoder takes.
        """
        for text in captions:
            length = len(self.tokenizer(text, verbose=False).input_ids)
            if length > self.max_tokens:
                raise NasError(
                    f"a caption has {length} tokens, the text encoder takes {self.max_tokens}: {text!r}; shorten it "
                    "or give the space more text.tokens"
                )
        found = self.tokenizer(list(captions), padding="max_length", max_length=self.max_tokens, return_tensors="pt")
        return found.input_ids

    def forward(self, captions: Sequence[str]) -> Tensor:
        """(B, L, D) states of the captions."""
        device = next(self.model.parameters()).device
        return self.model(input_ids=self.tokenize(captions).to(device)).last_hidden_state

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self.model.config.save_pretrained(folder)  # type: ignore[union-attr, operator]

    @classmethod
    def load(cls, folder: Path) -> TextEncoder:
        """Tokenizer and shape from ``folder``; the weights come with the checkpoint."""
        from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
            config = CLIPTextConfig.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError) as error:
            raise NasError(f"{folder}: no tokenizer of a run there; train again in a new run folder") from error
        return cls(tokenizer, CLIPTextModel(config))


def text_encoder_of(space: Space, data: Any) -> Any:
    """The text side of training on ``data``: its cached states, or a small encoder trained along."""
    from nas.data.cached import CachedLatents, CachedText

    if isinstance(data, CachedLatents):
        return CachedText(data.cache)
    return TextEncoder.small(space, data.captions)


def open_text(folder: Path) -> Any:
    """The text side that a training saved in ``folder``; weights trained along come with the checkpoint.

    Raises:
        NasError: if nothing is there, or the cache that it names is gone.
    """
    from nas.data.cached import REFERENCE, CachedText

    return CachedText.load(folder) if (folder / REFERENCE).is_file() else TextEncoder.load(folder)


def check_source(source: str) -> None:
    """Whether a model may be there at all, before a library retries for a minute and talks of it.

    Raises:
        OSError: if it is neither a folder nor a hub id, or the hub is out of reach and nothing of it is kept here.
    """
    if Path(source).exists():
        return
    if not HUB_ID.fullmatch(source):
        raise OSError("no such folder")
    import socket
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    from huggingface_hub import constants, snapshot_download

    try:
        snapshot_download(source, local_files_only=True)
        return
    except (OSError, ValueError):  # not kept here
        host = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        raise OSError("no such folder, and HF_HUB_OFFLINE is set")
    if not getproxies():
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            raise OSError(f"no such folder, and {host} cannot be reached") from None


def has_part(source: str, part: str) -> bool:
    """Whether a model folder or hub repository is a pipeline with this part; a repository that cannot say is not."""
    folder = Path(source)
    if folder.exists() or source.startswith((".", "/", "~")):
        return (folder / part / "config.json").is_file()
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(source, f"{part}/config.json")
    except Exception:  # not there, no network, no such repository: loading says which, with the better sentence
        return False
    return True


def first_line(error: BaseException) -> str:
    """The first line of a library's message, for a sentence of ours."""
    lines = str(error).strip().splitlines()
    return lines[0][:160].rstrip(".") if lines else type(error).__name__


def word_tokenizer(captions: Iterable[str], tokens: int) -> Any:
    """A word-level tokenizer of the captions' words, lower case, with start and end marks."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pre = pre_tokenizers.Whitespace()
    words = {word for text in captions for word, _ in pre.pre_tokenize_str(text.lower())}
    vocabulary = {word: i for i, word in enumerate([PAD, UNKNOWN, START, END, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, vocabulary[START]), (END, vocabulary[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        model_max_length=tokens,
    )


def drop_captions(captions: Sequence[str], share: float, generator: torch.Generator) -> list[str]:
    """The captions with about ``share`` of them emptied, for classifier-free guidance."""
    keep = torch.rand(len(captions), generator=generator) >= share
    return [text if kept else "" for text, kept in zip(captions, keep.tolist(), strict=True)]
