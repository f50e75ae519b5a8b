"""Captions that a text encoder would have to cut are refused before anything is decoded, encoded or trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nas.data.captions import Caption
from nas.errors import NasError

if TYPE_CHECKING:
    from search_spaces.space import Space

Check = Callable[[Sequence[Caption]], None]

SHOWN = 3  # places that an error names after the first


def fits(tokenizer: Any, most: int) -> Check:
    """A check that captions have at most ``most`` tokens."""

    def check(captions: Sequence[Caption]) -> None:
        check_lengths([(caption.text, caption.where) for caption in captions], tokenizer, most)

    return check


def words_fit(space: Space) -> Check:
    """A check for the small encoder that is trained along, whose words are the captions' own."""

    def check(captions: Sequence[Caption]) -> None:
        if not space.text:
            return
        from nas.pretrained.text import word_tokenizer

        fits(word_tokenizer([caption.text for caption in captions], space.text.tokens), space.text.tokens)(captions)

    return check


def check_lengths(said: Sequence[tuple[str, str]], tokenizer: Any, most: int) -> None:
    """Refuse captions with more tokens than a text encoder takes.

    Args:
        said: each caption and where it stands, or nothing.

    Raises:
        NasError: naming the first one, its tokens and words, and where the next ones stand.
    """
    where: dict[str, str] = {}
    for text, place in said:
        where.setdefault(text, place)
    counts = {text: len(tokenizer(text, verbose=False).input_ids) for text in where}
    long = [text for text, count in counts.items() if count > most]
    if not long:
        return
    first = long[0]
    others = [where[text] or repr(text) for text in long[1 : 1 + SHOWN]]
    also = f". Too long, too: {', '.join(others)}" if others else ""
    also += f" and {len(long) - 1 - SHOWN} more" if len(long) > 1 + SHOWN else ""
    raise NasError(
        f"{where[first] + ': ' if where[first] else ''}a caption has {counts[first]} tokens, the text encoder takes "
        f"{most}: {first!r}; shorten it or give the space more text.tokens{also}"
    )
