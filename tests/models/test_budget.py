"""Choices within a program's cycles: never above, near below, in few programs."""

import random

import pytest

from twillcore.errors import TwillcoreError
from twillcore.models.budget import ROUNDS, CostBudget, ProgramBudget


def tables(seed, layers=18, options=8):
    generator = random.Random(seed)
    sizes = [generator.choice((32, 64, 64, 128)) for _ in range(layers)]
    cost = {f"l{i}": {n: size * n for n in range(1, options + 1)} for i, size in enumerate(sizes)}
    loss = {
        name: {n: generator.random() * (options - n) ** 2 for n in entries}
        for name, entries in cost.items()
    }
    return loss, cost


def program(cost, floor, calls):
    """A program: what is no product, and products, of which a layer's first few are hidden."""

    def measure(choice):
        calls.append(choice)
        return 3000 + sum(max(floor * cost[n][8], cost[n][kept]) for n, kept in choice.items())

    return measure


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("floor", [0, 0.3])
def test_the_program_is_just_within(seed, floor):
    loss, cost = tables(seed)
    most = sum(options[8] for options in cost.values())
    for share in (0.45, 0.6, 0.8, 0.95):
        calls = []
        measure = program(cost, floor, calls)
        cycles = 3000 + share * most
        choice = ProgramBudget(cycles, measure).allocate(loss, cost)
        assert len(calls) <= ROUNDS + 2
        assert 0.97 * cycles <= measure(choice) <= cycles


def test_what_is_within_anyway_is_not_constrained():
    loss, cost = tables(0)
    choice = ProgramBudget(1e9, program(cost, 0, [])).allocate(loss, cost)
    assert set(choice.values()) == {8}


def test_the_best_possible_is_named_and_reached():
    loss, cost = tables(0)
    least = sum(options[1] for options in cost.values())
    budget = ProgramBudget(3000 + least - 1, program(cost, 0, []))
    for refused in (lambda: budget.refuse(cost), lambda: budget.allocate(loss, cost)):
        with pytest.raises(TwillcoreError) as caught:
            refused()
        assert str(caught.value) == (
            f"the target of {3000 + least - 1:,} cycles cannot be met: the best possible is"
            f" {3000 + least:,}"
        )
    choice = ProgramBudget(3000 + least, program(cost, 0, [])).allocate(loss, cost)
    assert set(choice.values()) == {1}


def test_costs_that_add_up():
    loss, cost = tables(1)
    choice = CostBudget(5000, "bytes").allocate(loss, cost)
    assert 4800 < sum(cost[name][kept] for name, kept in choice.items()) <= 5000
    with pytest.raises(TwillcoreError, match="the target of 5 bytes cannot be met"):
        CostBudget(5, "bytes").refuse(cost)
