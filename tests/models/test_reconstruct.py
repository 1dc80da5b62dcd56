"""Reconstruction does what it promises: less output error than magnitude, the pattern kept."""

import pytest
import torch
from torch import nn

from twillcore.errors import TwillcoreError
from twillcore.models.nm import project, satisfies
from twillcore.models.pattern import Pattern
from twillcore.models.reconstruct import inverse_factor, prune_by_reconstruction, prune_weight


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
