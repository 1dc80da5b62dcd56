"""Channels for the LUT core: by variance and divergence; the levels of SP2."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from twillcore.config import PRESETS
from twillcore.errors import TwillcoreError
from twillcore.models.mixmatch import (
    arrange,
    lut_count,
    quantise_to_levels,
    round_lut_channels,
    row_divergence,
    row_variance,
    share_of,
    sp2_levels,
)
from twillcore.models.policy import LayerPolicy, Policy
from twillcore.models.qat import on_grid


def test_variance_of_rows():
    weight = torch.tensor([[3.0, -3], [1, -1], [2, -2]])
    assert row_variance(weight).tolist() == [9, 1, 4]


def test_rows_on_the_grid_diverge_least():
    torch.manual_seed(0)
    on_grid = torch.randint(-1, 2, (1, 512)).float()
    divergence = row_divergence(torch.cat([torch.randn(1, 512), on_grid]), 2)
    assert divergence[1] == pytest.approx(0, abs=1e-4)
    assert divergence[0] > 0.1


def test_sp2_levels_of_four_bits_are_the_published():
    assert sp2_levels(4) == [0, 1 / 8, 1 / 4, 1 / 2, 5 / 8, 3 / 4, 1]
    levels = sp2_levels(4)
    rounded = quantise_to_levels(torch.tensor([[8.0, -4.9, 0.4, 3.2]]), levels)  # steps of 8
    assert rounded.tolist() == [[8, -5, 0, 4]]


def test_share_balances_the_cores():
    assert share_of(1.0, 1.5) == pytest.approx(0.4)
    z7020 = PRESETS["z7020"]  # 16 columns in as many cycles as bits, 24 in the 8 of a block
    assert share_of(16 / 4, 24 / 8) == pytest.approx(4 / 7)
    assert [lut_count(n, 4, z7020) for n in (64, 48, 10)] == [40, 24, 0]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.expand, self.norm = nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.contract, self.last = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)

    def forward(self, x):
        y = self.depthwise(functional.relu6(self.norm(self.expand(x))))
        return self.last(x + self.contract(y))


def test_channels_are_moved_where_that_is_free():
    torch.manual_seed(0)
    net = Block().eval().requires_grad_(False)
    for parameter in (*net.parameters(), *net.buffers()):
        if parameter.is_floating_point():
            parameter.copy_(torch.rand(parameter.shape) + 0.1)
    x = torch.randn(2, 8, 5, 5)
    before, order = net(x), net.expand.weight.flatten(1).clone()
    assert arrange(net, (x,), row_variance) == ["expand"]  # contract is added to, last is the end
    torch.testing.assert_close(net(x), before)
    variance = row_variance(net.expand.weight.flatten(1))
    assert (variance.diff() <= 0).all()
    assert not torch.equal(net.expand.weight.flatten(1), order)


def test_rows_of_the_lut_core_are_the_last():
    net = nn.Sequential(nn.Linear(32, 16)).requires_grad_(False)
    before = net[0].weight.clone()
    round_lut_channels(net, Policy("m", {"0": LayerPolicy(lut_share=0.5, lut_bits=3)}))
    assert torch.equal(net[0].weight[:8], before[:8])
    assert on_grid(net[0].weight[8:], 3)
    assert not torch.equal(net[0].weight[8:], before[8:])


def test_what_cannot_be_traced_is_refused():
    class Branches(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(TwillcoreError, match="channels cannot be arranged, no trace"):
        arrange(Branches(4, 4), (torch.ones(1, 4),), row_variance)
