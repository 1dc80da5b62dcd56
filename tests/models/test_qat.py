"""Fake quantisation: the grid, the straight gradient, zeros that stay."""

import pytest
import torch
from torch import nn

from twillcore.errors import TwillcoreError
from twillcore.models.nm import satisfies
from twillcore.models.pattern import Pattern
from twillcore.models.qat import fake_quantise, quantise_rows, unwrap
from twillcore.models.sr_ste import sparsify


@pytest.mark.parametrize("bits", range(2, 9))
def test_rows_lie_on_their_grid(bits):
    torch.manual_seed(bits)
    rounded = quantise_rows(torch.randn(6, 64), bits)
    limit = (1 << (bits - 1)) - 1
    for row in rounded:
        step = row[row != 0].abs().min() if bits == 2 else row.abs().max() / limit
        integers = row / step
        if bits > 2 and (integers - integers.round()).abs().max() > 1e-3:
            pytest.fail("not on the grid of the largest integer")
        assert integers.abs().max() < limit + 1e-3


def test_eight_bits_take_the_largest_magnitude_and_round_to_nearest():
    rounded = quantise_rows(torch.tensor([[127.0, 0.6, -126.4, 0.0]]), 8)
    assert rounded.tolist() == [[127, 1, -126, 0]]


def test_fewer_bits_search_the_scale():
    torch.manual_seed(0)
    weight = torch.randn(8, 256)
    plain = (weight.abs().amax(1, keepdim=True) / 7).expand_as(weight)
    error = ((weight / plain).round() * plain - weight).square().sum()
    assert (quantise_rows(weight, 4) - weight).square().sum() < 0.8 * error


def test_gradient_is_straight_and_zeros_stay():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(16, 4))
    sparsify(net, Pattern(2, 4), decay=0.0)
    fake_quantise(net, 4, activations=False)
    assert satisfies(net[0].weight, Pattern(2, 4))
    x, upstream = torch.randn(3, 16), torch.randn(3, 4)
    net(x).backward(upstream)
    original = net[0].parametrizations.weight.original
    torch.testing.assert_close(original.grad, upstream.T @ x)
    expected = net[0].weight.detach().clone()
    unwrap(net)
    assert torch.equal(net[0].weight, expected)


def test_activations_are_int8_with_the_range_seen_in_training():
    net = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
    fake_quantise(net)
    net.train()(torch.tensor([[12.7, 0.0]]))
    net.eval()
    out = net(torch.tensor([[100.0, 0.26]]))  # beyond the range, and 2.6 steps
    torch.testing.assert_close(out, torch.tensor([[12.7, 0.3]]))
    unwrap(net)
    torch.testing.assert_close(net(torch.ones(1, 2)), torch.ones(1, 2))


def test_bits_out_of_range_are_refused():
    with pytest.raises(TwillcoreError, match=r"bits must be 2\.\.8, not 9"):
        fake_quantise(nn.Sequential(nn.Linear(2, 2)), 9)
