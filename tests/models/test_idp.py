"""Inheritance: levels, seeds and winners."""

import pytest
import torch
from torch import nn

from twillcore.errors import TwillcoreError
from twillcore.models.idp import chain, inherit
from twillcore.models.nm import project, satisfies
from twillcore.models.pattern import Pattern


def test_levels():
    assert [str(p) for p in chain(4, 1)] == ["3:4", "2:4", "1:4"]
    assert [str(p) for p in chain(8, 1, halving=True)] == ["4:8", "2:8", "1:8"]
    assert [str(p) for p in chain(4, 4)] == ["4:4"]
    with pytest.raises(TwillcoreError, match="halving 8 does not reach 3:8"):
        chain(8, 3, halving=True)


def test_the_best_round_seeds_the_next_level():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 2))
    dense = net[0].weight.detach().clone()
    scores = iter([3.0, 5.0, 4.0, 1.0, 0.0, 0.5])  # of three rounds at two levels

    @torch.no_grad()
    def train(module, pattern, turn):
        module[0].parametrizations.weight.original.mul_(2.0)

    family = inherit(net, [Pattern(3, 4), Pattern(1, 4)], train, lambda _: next(scores), rounds=3)
    assert [(str(c.pattern), c.score) for c in family] == [("3:4", 5.0), ("1:4", 1.0)]
    # two doublings won the first level, one more the second
    assert torch.equal(family[0].module[0].weight, project(dense * 4, Pattern(3, 4)))
    assert torch.equal(family[1].module[0].weight, project(dense * 8, Pattern(1, 4)))
    assert torch.equal(net[0].weight, dense)
    assert satisfies(family[1].module[0].weight, Pattern(1, 4))
