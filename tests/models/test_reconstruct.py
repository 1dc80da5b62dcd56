"""Reconstruction does what it promises: less output error than magnitude, the pattern kept."""

import pytest
import torch
from torch import nn

from twillcore.errors import TwillcoreError
from twillcore.models.layout import as_rows, projected
from twillcore.models.nm import project, satisfies
from twillcore.models.pattern import Pattern
from twillcore.models.qat import on_grid, quantise_rows
from twillcore.models.reconstruct import (
    as_product,
    hessians,
    inverse_factor,
    prune_by_reconstruction,
    prune_weight,
    with_product,
)


def correlated(samples: int, inputs: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(samples, inputs // 4) @ torch.randn(inputs // 4, inputs) + 0.3 * torch.randn(
        samples, inputs
    )


def test_inverse_factor():
    x = correlated(200, 40).double()
    hessian = x.T @ x
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(40)
    u = inverse_factor(hessian.float()).double()
    assert torch.equal(u, u.triu())
    assert torch.allclose(u.T @ u @ damped, torch.eye(40, dtype=torch.float64), atol=1e-3)


@pytest.mark.parametrize(
    ("pattern", "share"),
    [("2:4", 0.8), ("1:4", 0.8), ("4:8", 0.8), ("3:7", 0.8), ("1:16", 0.95), ("5:200", 1.0)],
)
@pytest.mark.parametrize("inputs", [64, 300, 141])  # below, above and no multiple of a sweep's step
def test_error_is_far_below_that_of_magnitude(pattern, share, inputs):
    pattern = Pattern.parse(pattern)
    x = correlated(500, inputs)
    weight = torch.randn(24, inputs)
    pruned = prune_weight(weight, x.T @ x, pattern)
    assert satisfies(pruned, pattern)
    error = (x @ (pruned - weight).T).norm()
    assert error < share * (x @ (project(weight, pattern) - weight).T).norm()


def test_one_group_against_exhaustive_least_squares():
    """With everything left of one column, the sweep is near the best mask and its exact repair."""
    x = correlated(300, 8)
    weight = torch.randn(1, 8)
    pruned = prune_weight(weight, x.T @ x, Pattern(4, 8))
    error = (x @ (pruned - weight).T).square().sum()
    best = min(
        (x[:, list(keep)] @ torch.linalg.lstsq(x[:, list(keep)], x @ weight.T).solution
         - x @ weight.T).square().sum()
        for keep in torch.combinations(torch.arange(8), 4).tolist()
    )  # fmt: skip
    magnitude = (x @ (project(weight, Pattern(4, 8)) - weight).T).square().sum()
    assert best <= error <= magnitude


def test_weights_of_inputs_never_seen_become_zero():
    x = correlated(100, 16)
    x[:, 5] = 0
    assert not prune_weight(torch.ones(3, 16), x.T @ x, Pattern(4, 4))[:, 5].any()


def test_all_layers_in_order_with_progress():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    seen = []
    prune_by_reconstruction(
        net, [(torch.randn(64, 16),)], Pattern(1, 4), lambda *event: seen.append(event)
    )
    assert seen == [(0, 2, "0"), (1, 2, "2"), (2, 2, "")]
    assert all(satisfies(net[i].weight, Pattern(1, 4)) for i in (0, 2))


def test_calibration_without_finite_statistics_is_refused():
    net = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(TwillcoreError, match="0: calibration gives NaN or infinity"):
        prune_by_reconstruction(net, [(torch.full((2, 4), torch.nan),)], Pattern(2, 4))


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize(("pattern", "share"), [("2:4", 0.99), ("1:1", 0.8)])
def test_rounding_in_the_sweep_is_better_than_rounding_afterwards(bits, pattern, share):
    pattern = Pattern.parse(pattern)
    x = correlated(500, 64)
    weight = torch.randn(24, 64)
    hessian = x.T @ x
    joint = prune_weight(weight, hessian, pattern, bits)
    assert satisfies(joint, pattern)
    assert on_grid(joint, bits)
    after = quantise_rows(prune_weight(weight, hessian, pattern), bits)
    error = (x @ (joint - weight).T).norm()
    assert error < share * (x @ (after - weight).T).norm()


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"padding": (2, 1), "dilation": 2}]
)
def test_a_convolution_is_the_product_of_its_unfolded_inputs(options):
    torch.manual_seed(3)
    mixed = torch.einsum("bchw,dc->bdhw", torch.randn(8, 4, 9, 7), torch.randn(16, 4))
    x = mixed + 0.3 * torch.randn(8, 16, 9, 7)
    net = nn.Sequential(nn.Conv2d(16, 12, (3, 2), **options)).requires_grad_(False)
    wanted = net(x)
    other = nn.Sequential(nn.Conv2d(16, 12, (3, 2), **options)).requires_grad_(False)
    other.load_state_dict(net.state_dict())
    hessian = hessians(net, [(x,)], ["0"])["0"]
    change = torch.randn(12, hessian.shape[0])
    product = as_product(net[0])
    other[0].weight.copy_(with_product(net[0], product + change))
    energy = torch.einsum("oi,ij,oj->", change, hessian, change)
    assert float((other(x) - wanted).square().sum()) == pytest.approx(float(energy), rel=1e-3)
    assert torch.equal(with_product(net[0], product), net[0].weight)

    prune_by_reconstruction(net, [(x,)], {"0": Pattern(1, 4)}, bits={"0": 4})
    assert satisfies(as_rows(net[0].weight), Pattern(1, 4))
    assert on_grid(as_product(net[0]), 4)
    other[0].weight.copy_(projected(with_product(net[0], product), Pattern(1, 4)))
    assert (net(x) - wanted).norm() < 0.9 * (other(x) - wanted).norm()


def test_layers_that_cannot_be_reconstructed_are_named():
    net = nn.Sequential(nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3, groups=6))
    for name, reason in (("0", "groups of 4 do not divide 6 input channels"),
                         ("1", "only linear layers and ungrouped")):  # fmt: skip
        with pytest.raises(TwillcoreError, match=f"{name} cannot be reconstructed: {reason}"):
            prune_by_reconstruction(net, [], {name: Pattern(2, 4)})
    with pytest.raises(TwillcoreError, match="no layers 7"):
        prune_by_reconstruction(net, [], {"7": Pattern(2, 4)})
