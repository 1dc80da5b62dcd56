"""SR-STE by hand: what the forward keeps, the gradient, the decay; SAD by its definition."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from twillcore.errors import TwillcoreError
from twillcore.models.layout import as_rows, from_rows, projected
from twillcore.models.nm import project, satisfies
from twillcore.models.pattern import Pattern
from twillcore.models.sad import Sad, divergence
from twillcore.models.sr_ste import decouple, freeze, parametrised, set_patterns, sparsify


def layer(decay: float, inputs: int = 8, outputs: int = 3) -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(3)
    linear = nn.Linear(inputs, outputs)
    dense = linear.weight.detach().clone()
    sparsify(linear, Pattern(2, 4), decay)
    return linear, dense


def test_forward_is_that_of_the_projected_weight_with_bias():
    linear, dense = layer(0.0)
    x = torch.randn(5, 8)
    expected = functional.linear(x, project(dense, Pattern(2, 4)), linear.bias)
    assert torch.equal(linear(x), expected)


@pytest.mark.parametrize("decay", [0.0, 0.25])
def test_gradient_reaches_all_weights_and_decays_masked_ones(decay):
    linear, dense = layer(decay)
    x, upstream = torch.randn(5, 8), torch.randn(5, 3)
    linear(x).backward(upstream)
    masked = project(dense, Pattern(2, 4)) == 0
    expected = upstream.T @ x + decay * masked * dense
    torch.testing.assert_close(linear.parametrizations.weight.original.grad, expected)


def test_one_step_of_sgd_is_equation_8():
    linear, dense = layer(0.5)
    x = torch.randn(5, 8)
    optimiser = torch.optim.SGD(linear.parameters(), lr=0.1)
    linear(x).sum().backward()
    optimiser.step()
    gradient = torch.ones(5, 3).T @ x
    masked = project(dense, Pattern(2, 4)) == 0
    torch.testing.assert_close(
        linear.parametrizations.weight.original.detach(),
        dense - 0.1 * (gradient + 0.5 * masked * dense),
    )


def test_decoupled_decay_is_not_rescaled_by_adam():
    steps = []
    for decay in (0.0, 2.0):
        linear, dense = layer(0.0)
        optimiser = torch.optim.AdamW(linear.parameters(), lr=0.01, weight_decay=0.0)
        decouple(optimiser, linear, decay)
        optimiser.param_groups[0]["lr"] = 0.005  # the rate of the step counts, not the first
        linear(torch.ones(4, 8)).square().sum().backward()
        optimiser.step()
        steps.append(linear.parametrizations.weight.original.detach())
    masked = project(dense, Pattern(2, 4)) == 0
    torch.testing.assert_close(steps[1], steps[0] - 0.005 * 2.0 * masked * steps[0])


def test_masks_follow_the_weights():
    linear, _ = layer(0.0)
    with torch.no_grad():
        linear.parametrizations.weight.original[0] = torch.tensor([1.0, 2, 3, 4, 8, 7, 6, 5])
    assert linear.weight[0].tolist() == [0, 0, 3, 4, 8, 7, 0, 0]


def test_convolutions_group_input_channels():
    torch.manual_seed(4)
    conv = nn.Conv2d(10, 3, 2)
    dense = conv.weight.detach().clone()
    sparsify(conv, Pattern(1, 4))
    for out in range(3):
        for row in range(2):
            for column in range(2):
                channels = conv.weight[out, :, row, column]
                expected = project(dense[None, out, :, row, column], Pattern(1, 4))[0]
                assert torch.equal(channels, expected)
    assert torch.equal(from_rows(as_rows(dense), dense), dense)
    assert torch.equal(projected(dense, Pattern(1, 4)), conv.weight)


def test_patterns_by_name_change_and_freeze():
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    sparsify(net, {"0": Pattern(3, 4), "2": Pattern(2, 4), "3": Pattern(4, 4)})
    assert [name for name, _, _ in parametrised(net)] == ["0", "2"]  # 4:4 is dense
    set_patterns(net, {"0": Pattern(1, 4)})
    x = torch.randn(3, 16)
    before = net(x)
    freeze(net)
    assert not list(parametrised(net))
    assert torch.equal(net(x), before)
    assert satisfies(net[0].weight, Pattern(1, 4))
    assert satisfies(net[2].weight, Pattern(2, 4))


def test_freezing_a_copy_leaves_the_original():
    linear, _ = layer(0.0)
    frozen = freeze(copy.deepcopy(linear))
    assert type(frozen) is nn.Linear
    assert torch.equal(linear.weight, frozen.weight)
    assert [name for name, _, _ in parametrised(linear)] == [""]


def test_unknown_layers_are_refused():
    with pytest.raises(TwillcoreError) as caught:
        sparsify(nn.Sequential(nn.Linear(4, 4)), {"1": Pattern(1, 2), "x": Pattern(1, 2)})
    assert str(caught.value) == "no layers 1, x; there are 0"


def test_sad_is_the_number_of_bits_that_differ():
    a = {"l": torch.tensor([[True, False, True]]), "m": torch.tensor([True])}
    b = {"l": torch.tensor([[False, True, True]]), "m": torch.tensor([True])}
    assert divergence(a, b) == 2
    linear, _ = layer(0.0, inputs=4, outputs=1)
    sad = Sad()
    changes = []
    for row in ([4.0, 3, 2, 1], [4.0, 1, 2, 3], [1.0, 2, 3, 4], [1.0, 2, 3, 4]):
        with torch.no_grad():
            linear.parametrizations.weight.original.copy_(torch.tensor([row]))
        linear(torch.ones(1, 4))
        changes.append(sad.update(linear))
    assert changes == [0, 2, 2, 0]
    assert sad.total == 4
    assert sad.per_weight == 1.0
