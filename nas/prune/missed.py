"""How much a cut network misses of the uncut one's answers, on common noise; and cheaper guesses of that."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas.errors import NasError
from nas.supernet.supernet import Supernet
from nas.tasks.contract import Question
from search_spaces.arrangement import Arrangement
from search_spaces.variant import Variant

#: An arrangement's harm: 0 for the uncut network, the more the worse.
Harm = Callable[[Arrangement], float]

#: A network: what its family reads, and where it leaves what stands at its places, to its answer.
Run = Callable[[Mapping[str, Any], dict[str, Tensor]], Tensor]


class Missed:
    """Squared difference of a path's answers from the uncut network's, as a share of their own square.

    Args:
        supernet: holds both. questions: what both are asked, noise and all. whole: the uncut arrangement.
        feature_weight: of the same difference at the places that the family lets be read, in the mean over them; each
            counts as a share of its own square, so that no place whose numbers are large outweighs the others: the
            normalised distillation of LAPTOP-Diff (arXiv 2404.11098).
    """

    def __init__(
        self, supernet: Supernet, questions: Sequence[Question], whole: Arrangement, feature_weight: float
    ) -> None:
        self.supernet, self.questions, self.weight = supernet, list(questions), feature_weight
        family = supernet.space.backbone.family
        self.places = tuple(family.features(supernet.unet)) if feature_weight else ()
        with torch.no_grad():
            self._wanted = [self._answer(self._along(whole), question) for question in self.questions]

    def _along(self, arrangement: Arrangement) -> Run:
        return lambda inputs, seen: self.supernet.predict(inputs, arrangement, seen)

    def _answer(self, run: Run, question: Question) -> dict[str, Tensor]:
        """A network's answer to a question, under the empty name, and what stands at the places that are read."""
        seen: dict[str, Tensor] = {}
        answer = self.supernet.task.answer(lambda inputs: run(inputs, seen), question)
        return {"": answer.float(), **{place: seen[place].float() for place in self.places}}

    def __call__(self, arrangement: Arrangement) -> float:
        """What a path of the supernet misses."""
        return self.of(self._along(arrangement))

    @torch.no_grad()
    def of(self, run: Run) -> float:
        """What any network misses that is run on inputs and tells of its places."""
        gone = dict.fromkeys(("", *self.places), 0.0)
        size = dict(gone)
        for question, wanted in zip(self.questions, self._wanted, strict=True):
            found = self._answer(run, question)
            for name, tensor in wanted.items():
                gone[name] += float((found[name] - tensor).double().square().sum())
                size[name] += float(tensor.double().square().sum())
        shares = {name: gone[name] / max(size[name], 1e-12) for name in gone}
        features = [shares[place] for place in self.places]
        return shares[""] + (self.weight * sum(features) / len(features) if features else 0.0)


class Magnitude:
    """What share of the squared weights at each place is cut, summed over places: a guess that runs no network."""

    def __init__(self, supernet: Supernet, whole: Arrangement) -> None:
        self.supernet, self.whole = supernet, whole
        self._squares: dict[tuple[str, Variant], float] = {}

    def _square(self, place: str, variants: Sequence[Variant]) -> float:
        total = 0.0
        for slot, variant in enumerate(variants):
            if (place, variant) not in self._squares:
                weights = self.supernet.shelf(place).extract(slot, variant).values()
                self._squares[place, variant] = sum(float(w.double().square().sum()) for w in weights)
            total += self._squares[place, variant]
        return total

    def __call__(self, arrangement: Arrangement) -> float:
        uncut = {place: self._square(place, variants) for place, variants in self.whole.layers}
        norm = sum(uncut.values())
        return sum(uncut[place] - self._square(place, variants) for place, variants in arrangement.layers) / norm


class Chance:
    """Random numbers in place of sensitivity: what any other guess must beat. A cut's is between 0 and 1."""

    def __init__(self, whole: Arrangement, seed: int) -> None:
        self.whole, self.seed = whole, seed

    def __call__(self, arrangement: Arrangement) -> float:
        return sum(
            self._draw(place, variants) for place, variants in arrangement.layers if variants != self.whole.at(place)
        )

    def _draw(self, place: str, variants: Sequence[Variant]) -> float:
        text = f"{self.seed} {place} {' '.join(variant.label for variant in variants)}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


class Trials:
    """Every arrangement's harm and cost, found once and noted in a file; a search that was stopped asks it again.

    Args:
        path: of the file. harm, cost: of an arrangement. name: of the cost.

    Raises:
        NasError: if the file is damaged.
    """

    def __init__(self, path: Path, harm: Harm, cost: Harm, name: str) -> None:
        self.path, self._harm, self._cost = path, harm, cost
        self.head = ["arrangement", "cut", "missed", name]
        self.known: dict[str, float] = {}
        self.made = 0
        if not path.is_file():
            return
        text = path.read_text()
        whole = text[: text.rfind("\n") + 1]  # a line that was being written is written again
        if whole != text:
            path.write_text(whole)
        for row in list(csv.reader(whole.splitlines()))[1:]:
            try:
                self.known[row[0]] = float(row[2])
            except (ValueError, IndexError):
                raise NasError(f"{path}: {','.join(row)!r:.80} is no trial; delete the file to try all anew") from None

    def __call__(self, arrangement: Arrangement, cut: str) -> float:
        """The harm; ``cut`` says for people what was tried."""
        if arrangement.key not in self.known:
            self.known[arrangement.key] = self._harm(arrangement)
            self.made += 1
            new = not self.path.exists() or not self.path.stat().st_size
            with self.path.open("a", newline="") as handle:
                writer = csv.writer(handle, lineterminator="\n")
                if new:
                    writer.writerow(self.head)
                writer.writerow([arrangement.key, cut, self.known[arrangement.key], f"{self.cost(arrangement):.8g}"])
        return self.known[arrangement.key]

    def cost(self, arrangement: Arrangement) -> float:
        return self._cost(arrangement)
