"""What other libraries leave in a module becomes plain weights."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from twillcore.errors import TwillcoreError
from twillcore.models.exchange import plain
from twillcore.models.nm import satisfies
from twillcore.models.pattern import Pattern
from twillcore.models.sr_ste import sparsify


def test_pruning_masks_and_parametrisations_are_folded():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))
    prune.l1_unstructured(net[0], "weight", 0.5)
    sparsify(net[1], Pattern(2, 4))
    x = torch.randn(3, 8)
    folded = plain(net)
    assert torch.equal(folded(x), net(x))
    assert (folded[0].weight == 0).sum() == 16
    assert satisfies(folded[1].weight, Pattern(2, 4))
    assert not parametrize.is_parametrized(folded[1])
    assert {name for name, _ in folded.named_buffers()} == set()
    assert parametrize.is_parametrized(net[1])  # the original is as it was


class Integers:
    """The form of brevitas' quantised weights."""

    def __init__(self, integers, scale, zero_point):
        self.int = lambda: integers
        self.scale, self.zero_point = scale, zero_point
        self.bit_width = torch.tensor(4.0)


class QuantLinear(nn.Linear):
    zero = 0.0

    def quant_weight(self):
        integers = torch.arange(-6, 6).reshape(3, 4)
        return Integers(integers, torch.tensor([[0.5], [1.0], [2.0]]), torch.tensor(self.zero))


def test_layers_with_quantised_weights_become_plain():
    net = nn.Sequential(QuantLinear(4, 3))
    folded = plain(net)
    assert type(folded[0]) is nn.Linear
    assert folded[0].weight.tolist() == [[-3, -2.5, -2, -1.5], [-2, -1, 0, 1], [4, 6, 8, 10]]
    assert torch.equal(folded[0].bias, net[0].bias)


def test_zero_points_are_refused():
    net = nn.Sequential(QuantLinear(4, 3))
    net[0].zero = 3.0
    with pytest.raises(TwillcoreError, match="0: weights have a zero point"):
        plain(net)


class WeightOnly(torch.Tensor):
    """The form of torchao's tensors: a subclass that dequantises."""

    def __deepcopy__(self, memo):
        return self.clone()

    def dequantize(self):
        return self.as_subclass(torch.Tensor) * 0.5


def test_tensor_subclasses_are_dequantised():
    net = nn.Sequential(nn.Linear(2, 2, bias=False))
    subclass = torch.tensor([[1.0, 2], [3, 4]]).as_subclass(WeightOnly)
    net[0].weight = nn.Parameter(subclass, requires_grad=False)
    folded = plain(net)
    assert type(folded[0].weight.data) is torch.Tensor
    assert folded[0].weight.tolist() == [[0.5, 1], [1.5, 2]]


def quantize(x):
    return (x * 8).round()


def dequantize(x, scale):
    return x * scale


class Converted(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("frozen", torch.tensor([[1.0, -2.0], [3.0, 4.0]]))

    def forward(self, x):
        x = dequantize(quantize(x), 0.125)
        return nn.functional.linear(x, dequantize(self.frozen, 0.25))


torch.fx.wrap("quantize")
torch.fx.wrap("dequantize")


def test_graphs_with_dequantised_constants_are_folded():
    graph = torch.fx.symbolic_trace(Converted())
    folded = plain(graph)
    x = torch.tensor([[0.3, 0.7]])
    expected = x @ (torch.tensor([[1.0, -2.0], [3.0, 4.0]]) * 0.25).T
    torch.testing.assert_close(folded(x), expected)
    assert not [node for node in folded.graph.nodes if "quantize" in str(node.target)]


def test_nan_is_named():
    net = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight[0, 0] = torch.nan
    with pytest.raises(TwillcoreError, match=r"NaN or infinity: 0\.weight"):
        plain(net)
