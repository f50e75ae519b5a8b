"""Which cuts: one after the other by harm a unit of cost, or all at once where harm is taken as additive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nas.errors import NasError
from nas.prune.missed import Trials
from nas.prune.solve import least_harm
from nas.prune.space_cuts import Cuttable, change
from search_spaces.arrangement import Arrangement

#: Told of every trial: how many of how many of this round, and what was tried.
Tell = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Search:
    """What is cut, and how far.

    Args:
        cuttable: what may be. trials: harm and cost. target: most that the answer may cost. tell: of progress.
    """

    cuttable: Cuttable
    trials: Trials
    target: float
    tell: Tell

    @property
    def whole(self) -> Arrangement:
        return self.cuttable.space.baseline()

    def check(self, shown: Callable[[float], str]) -> None:
        """Whether anything meets the target.

        Raises:
            NasError: with what is nearest to it.
        """
        smallest = self.whole
        for name, options in self.cuttable.options.items():
            cheapest = min(options, key=lambda option: self.trials.cost(smallest.replace(name, option)))
            smallest = smallest.replace(name, cheapest)
        least = self.trials.cost(smallest)
        if least > self.target:
            raise NasError(
                f"no cut leads to {shown(self.target)}: the smallest network of space {self.cuttable.space.name} in "
                f"these units ({', '.join(self.cuttable.units)}) takes {shown(least)}; ask for that or more"
            )


def greedy(search: Search) -> Arrangement:
    """Cut what is missed least for what it saves, one step after the other, until the target is met."""
    now, trials = search.whole, search.trials
    while trials.cost(now) > search.target:
        cost, harm = trials.cost(now), trials(now, "nothing more")
        cheaper = [(cut, tried) for cut, tried in search.cuttable.smaller(now) if trials.cost(tried) < cost]
        best: tuple[float, Arrangement] | None = None
        for at, (cut, tried) in enumerate(cheaper):
            price = (trials(tried, cut) - harm) / (cost - trials.cost(tried))
            search.tell(at + 1, len(cheaper), cut)
            if best is None or price < best[0]:
                best = price, tried
        if best is None:
            raise NasError("no single cut makes the network any cheaper; prune with --set prune.method=exact")
        now = best[1]
    return now


def exact(search: Search, rounds: int) -> Arrangement:
    """The least harm of all cuts together, each cut's own harm added up; then again around what was found.

    Harm is not additive: two cuts may be missed more or less than each. So the answer is evaluated, every option's harm
    is measured anew on the cut network, and the sum solved again, as long as that makes the real harm less.
    """
    best: Arrangement | None = None
    for _ in range(max(1, rounds)):
        found = _solved(search, best or search.whole)
        if best is not None and search.trials(found, "together") >= search.trials(best, "together"):
            break
        best = found
    assert best is not None
    return best


def _solved(search: Search, around: Arrangement) -> Arrangement:
    """The additive answer by harms and costs measured one place at a time around a network."""
    trials, options = search.trials, search.cuttable.options
    base, cost = trials(around, "nothing more"), trials.cost(around)
    harms, costs, done, count = [], [], 0, sum(len(found) for found in options.values())
    for name, found in options.items():
        tried = [around.replace(name, option) for option in found]
        cuts = [change(name, around.at(name), option) if option != around.at(name) else "" for option in found]
        harm = []
        for one, cut in zip(tried, cuts, strict=True):
            harm.append(trials(one, cut) - base if cut else 0.0)
            done += 1
            search.tell(done, count, cut or name)
        harms.append(np.array(harm))
        costs.append(np.array([trials.cost(one) - cost for one in tried]))
    room = search.target - cost
    while True:
        chosen = least_harm(harms, costs, room)
        if chosen is None:  # the peak of a memory limit does not add up: only then
            return greedy(search)
        answer = around
        for (name, found), option in zip(options.items(), chosen, strict=True):
            answer = answer.replace(name, found[option])
        over = trials.cost(answer) - search.target
        if over <= 1e-9 * abs(search.target):
            return answer
        room -= max(over, 1e-6 * abs(search.target))


def give_back(search: Search, arrangement: Arrangement) -> Arrangement:
    """Give back what still fits, best first: a whole block that was cut last may have saved more than was asked for."""
    trials, now = search.trials, arrangement
    while True:
        fitting = [(cut, one) for cut, one in search.cuttable.larger(now) if trials.cost(one) <= search.target]
        for at, (cut, one) in enumerate(fitting):
            trials(one, cut)
            search.tell(at + 1, len(fitting), cut)
        best = min((one for _, one in fitting), key=lambda one: trials.known[one.key], default=now)
        if best is now or trials.known[best.key] >= trials(now, "nothing more"):
            return now
        now = best
