"""What the choice of the layers' options must stay within: a sum of costs, or a program's cycles.

A program takes more cycles than its products do by the closed form, by an amount that depends on
the choice: memory, dependences, everything that is no product. So the choice is made within so many
product cycles, its program is timed by the cycle engine, the budget of product cycles is corrected
by the difference, and the choice made again.
"""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from twillcore.errors import TwillcoreError
from twillcore.models.allocation import allocate, refuse_budget

Option = TypeVar("Option")
Table = Mapping[str, Mapping[Option, float]]

ROUNDS = 6  # of choosing and timing, at most
NEAR = 0.005  # of the target: a choice that leaves less is not corrected any more


class Budget(Protocol):
    """What a choice must stay within; tables are by layer, then by option."""

    def refuse(self, cost: Table) -> None:
        """Raise :class:`TwillcoreError` with the least possible if no choice is within."""

    def allocate(self, loss: Table, cost: Table) -> dict[str, Option]:
        """Return the option of each layer with the least loss of what is within."""


class CostBudget:
    """At most ``value`` of a cost that adds up over the layers; ``unit`` is for messages."""

    def __init__(self, value: float, unit: str) -> None:
        self._value, self._unit = value, unit

    def refuse(self, cost: Table) -> None:
        refuse_budget(cost, self._value, self._unit)

    def allocate(self, loss: Table, cost: Table) -> dict[str, Option]:
        return allocate(loss, cost, self._value, self._unit)


class ProgramBudget:
    """At most ``cycles`` of the whole program, which ``measure`` finds for a choice.

    Costs are cycles of the products. A program that has more of these is taken to be no faster.
    """

    def __init__(self, cycles: float, measure: Callable[[dict[str, Option]], int]) -> None:
        self._cycles, self._measure = cycles, measure
        self._known: dict[frozenset, int] = {}

    def refuse(self, cost: Table) -> None:
        least = self._time(_smallest(cost))
        if least > self._cycles:
            raise TwillcoreError(
                f"the target of {self._cycles:,.0f} cycles cannot be met: the best possible is"
                f" {least:,}"
            )

    def allocate(self, loss: Table, cost: Table) -> dict[str, Option]:
        """Return the choice whose program is nearest to the cycles, from below.

        The budget of product cycles is found by false position between what is known to be within
        and what is not; where that hardly moves, in the middle.
        """
        self.refuse(cost)
        free = allocate(loss, cost, sum(max(options.values()) for options in cost.values()))
        if self._time(free) <= self._cycles:
            return free
        best = _smallest(cost)
        low, high = (_total(cost, best), self._time(best)), (_total(cost, free), self._time(free))
        for turn in range(ROUNDS):
            share = (self._cycles - low[1]) / (high[1] - low[1]) if turn % 3 < 2 else 0.5
            budget = low[0] + share * (high[0] - low[0])
            choice = allocate(loss, cost, budget)
            cycles = self._time(choice)
            if cycles > self._cycles:
                high = _total(cost, choice), cycles
            else:
                best, low = choice, (budget, cycles)
            if (1 - NEAR) * self._cycles <= low[1] or high[0] - low[0] < 1:
                break
        return best

    def _time(self, choice: dict[str, Option]) -> int:
        key = frozenset(choice.items())
        if key not in self._known:
            self._known[key] = self._measure(choice)
        return self._known[key]


def _smallest(cost: Table) -> dict[str, Option]:
    return {name: min(options, key=options.get) for name, options in cost.items()}


def _total(cost: Table, choice: Mapping[str, Option]) -> float:
    return sum(cost[name][option] for name, option in choice.items())
