"""Which option each layer takes: the least measured loss within a budget, by integer programming.

    minimise sum loss[l, o] * x[l, o]   with   sum_o x[l, o] = 1,  sum cost[l, o] * x[l, o] <= budget

Exact for losses that add up, and solved in a fraction of a second. Where DominoSearch and OMPQ
choose by a proxy, this takes what :mod:`twillcore.models.sensitivity` has measured.
"""  # noqa: E501

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from twillcore.errors import TwillcoreError

Option = TypeVar("Option")


def allocate(
    loss: Mapping[str, Mapping[Option, float]],
    cost: Mapping[str, Mapping[Option, float]],
    budget: float,
    unit: str = "cost",
) -> dict[str, Option]:
    """Return the option of each layer.

    Parameters
    ----------
    loss, cost : by layer, then by option; the options of a layer need not be those of another
    unit : what the cost is counted in, for messages

    Raises
    ------
    TwillcoreError
        If no choice is within the budget (the smallest possible is named), a loss is NaN, or the
        two tables differ in layers or options.
    """
    _check(loss, cost)
    entries = [(layer, option) for layer, options in loss.items() for option in options]
    if not entries:
        raise TwillcoreError("nothing to allocate: no layers")
    losses = np.array([loss[layer][option] for layer, option in entries])
    costs = np.array([float(cost[layer][option]) for layer, option in entries])
    refuse_budget(cost, budget, unit)
    layers = list(loss)
    one_each = np.array([[float(layer == name) for name, _ in entries] for layer in layers])
    solution = milp(
        losses / max(np.abs(losses).max(), 1e-30),
        integrality=np.ones(len(entries)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(costs / max(budget, 1e-30), ub=1),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if solution.x is None:
        raise TwillcoreError(f"allocation failed: {solution.message}")
    taken = (entry for entry, x in zip(entries, solution.x, strict=True) if x > 0.5)
    return dict(taken)


def refuse_budget(
    cost: Mapping[str, Mapping[Option, float]], budget: float, unit: str = "cost"
) -> None:
    """Raise :class:`TwillcoreError` with the smallest cost if no choice is within ``budget``."""
    smallest = sum(min(options.values()) for options in cost.values())
    if smallest > budget:
        raise TwillcoreError(
            f"the target of {budget:,.0f} {unit} cannot be met: the best possible is"
            f" {smallest:,.0f}"
        )


def _check(loss: Mapping, cost: Mapping) -> None:
    if loss.keys() != cost.keys():
        raise TwillcoreError(f"losses are of layers {', '.join(loss)}, costs of {', '.join(cost)}")
    for layer, options in loss.items():
        if options.keys() != cost[layer].keys():
            raise TwillcoreError(f"{layer}: losses and costs are of different options")
        if wrong := [option for option, value in options.items() if not np.isfinite(value)]:
            raise TwillcoreError(f"{layer}: the loss of {wrong[0]} is {options[wrong[0]]}")
