"""Text for training and sampling: a small encoder trained along with the captions' own words, or a pre-trained one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import NasError
from nas.pretrained.hub import fetch, has_part, read_config
from nas.pretrained.loading import load_weights, loading
from search_spaces.ends import text_model
from search_spaces.parts import SMALL
from search_spaces.space import Space

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
        """The ``small`` encoder that spaces are measured with, with a word-level vocabulary of the captions."""
        words = word_tokenizer(captions, space.text.tokens)
        marks = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        return cls(words, text_model(SMALL, space.text.tokens, space.text.dim, len(words), **marks))

    @classmethod
    def pretrained(cls, source: str) -> TextEncoder:
        """A CLIP text model and its tokenizer, by hub id or folder; of a pipeline its ``text_encoder`` is taken.

        Raises:
            NasError: if it cannot be loaded.
        """
        remedy = "give a hub id or a folder with its config.json, weights and tokenizer"
        with loading(source, "CLIP text model", remedy):
            words, states = ("tokenizer", "text_encoder") if has_part(source, "text_encoder") else ("", "")
            model = load_text_model(fetch(source, states), source)
            tokenizer = load_tokenizer(fetch(source, words))
            probe(tokenizer, model)
        return cls(tokenizer, model.requires_grad_(False))

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
        from transformers import CLIPTextConfig, CLIPTextModel

        with loading(folder, "tokenizer of a run", "train again in a new run folder"):
            tokenizer = load_tokenizer(folder)
            model = CLIPTextModel(CLIPTextConfig.from_dict(read_config(folder / "config.json")))
            probe(tokenizer, model)
        return cls(tokenizer, model)


class NoText(nn.Module):
    """The text side of a space that reads none."""

    facts: Mapping[str, Any] = {}

    def forward(self, captions: Sequence[str]) -> Tensor:
        """(B, 0, 0): no states."""
        return torch.empty(len(captions), 0, 0)

    def save(self, folder: Path) -> None:
        """There is nothing to keep."""


def load_text_model(folder: Path, source: str) -> Any:
    """The ``CLIPTextModel`` of a folder, in float32; of a whole CLIP its text half.

    Raises:
        NasError: if its configuration or weights are damaged, or its configuration names code of its own.
    """
    from transformers import CLIPTextModel

    read_config(folder / "config.json")
    return load_weights(CLIPTextModel, folder, source, dtype=torch.float32, trust_remote_code=False).eval()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, by transformers' own classes.

    Raises:
        NasError: if its configuration is damaged, or names code of its own.
    """
    from transformers import AutoTokenizer

    if (folder / "tokenizer_config.json").is_file():
        read_config(folder / "tokenizer_config.json")
    if (folder / "config.json").is_file():
        read_config(folder / "config.json")
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


@torch.no_grad()
def probe(tokenizer: Any, model: Any) -> None:
    """Read two captions: what a wrong field of either breaks is found now, not hours later.

    Raises:
        ValueError: if the two do not belong together, or the states are not finite; and whatever a library says.
    """
    limit, known = int(model.config.max_position_embeddings), int(model.config.vocab_size)
    tokens = tokenizer(["a", ""], padding="max_length", max_length=limit, return_tensors="pt").input_ids
    if tuple(tokens.shape) != (2, limit):
        raise ValueError(f"its tokenizer pads two captions to {tuple(tokens.shape)}, the model reads (2, {limit})")
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < known:
        raise ValueError(f"its tokenizer gives token {int(tokens.max())}, the model knows {known}")
    states = model(input_ids=tokens.to(model.device))
    if not (torch.isfinite(states.last_hidden_state).all() and torch.isfinite(states.pooler_output).all()):
        raise ValueError("its states of a caption are not finite")


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
