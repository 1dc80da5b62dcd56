"""IDP, inherited dynamic pruning (of STA): each sparsity starts from the best of the one before.

From dense down to the target, N = M-1, M-2 .. n or halved every time. At each level the mask is
made anew in every step (dynamic), and the best of several rounds seeds the next level
(inheritance). Every winner is a candidate for deployment: a family for the price of one training.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from twillcore.errors import TwillcoreError
from twillcore.models.pattern import Pattern
from twillcore.models.sr_ste import DECAY, freeze, parametrised, set_patterns, sparsify


@dataclass(frozen=True)
class Candidate:
    """The winner of one level: plain sparse weights, and their score (more is better)."""

    pattern: Pattern
    score: float
    module: nn.Module


def chain(group: int, kept: int, halving: bool = False) -> list[Pattern]:
    """Return the levels from ``group - 1`` (or half the group) down to ``kept`` of ``group``.

    Raises
    ------
    TwillcoreError
        If there is no such pattern, or halving does not reach it.
    """
    target = Pattern(kept, group)
    if not halving:
        return [Pattern(n, group) for n in range(max(group - 1, kept), kept - 1, -1)]
    levels, n = [], group
    while n > kept:
        n, rest = divmod(n, 2)
        if rest or n < kept:
            raise TwillcoreError(f"halving {group} does not reach {target}")
        levels.append(Pattern(n, group))
    return levels or [target]


def inherit(
    module: nn.Module,
    levels: Sequence[Pattern],
    train: Callable[[nn.Module, Pattern, int], None],
    score: Callable[[nn.Module], float],
    rounds: int = 1,
    decay: float = DECAY,
    layers: Sequence[str] | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> list[Candidate]:
    """Prune ``module``, which is trained and dense, level by level; return all winners.

    Parameters
    ----------
    levels : from the densest to the target, see :func:`chain`
    train : called with the module, the pattern and the round's number; trains it in place
    score : accuracy or the like on data that training does not see
    decay : of masked weights, as in :class:`twillcore.models.sr_ste.SrSte`
    layers : names of those to prune; default: all linear and convolution layers
    """
    chosen = levels[0] if layers is None else dict.fromkeys(layers, levels[0])
    module = sparsify(copy.deepcopy(module), chosen, decay)
    family: list[Candidate] = []
    for number, pattern in enumerate(levels):
        set_patterns(module, dict.fromkeys((name for name, _, _ in parametrised(module)), pattern))
        best: tuple[float, dict[str, Tensor]] | None = None
        for turn in range(rounds):
            progress(number * rounds + turn, len(levels) * rounds, str(pattern))
            train(module, pattern, turn)
            result = score(module)
            if best is None or result > best[0]:
                best = result, copy.deepcopy(module.state_dict())
        module.load_state_dict(best[1])
        family.append(Candidate(pattern, best[0], freeze(copy.deepcopy(module))))
    return family
