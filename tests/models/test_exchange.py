"""What other libraries leave in a module becomes plain weights."""

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # the operators that graphs of pt2e consist of
from torch import nn
from torch.nn.utils import parametrize, prune

import twillcore
from twillcore.errors import TwillcoreError
from twillcore.models.exchange import is_foreign, plain
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


class Pt2e(nn.Module):
    """What ``convert_pt2e`` makes of a linear layer, with PyTorch's own operators."""

    def __init__(self):
        super().__init__()
        integers = torch.randint(-7, 8, (16, 16), generator=torch.Generator().manual_seed(0))
        self.register_buffer("frozen", integers.to(torch.int8))
        self.register_buffer("scales", torch.linspace(0.1, 0.4, 16))
        self.register_buffer("zeros", torch.zeros(16, dtype=torch.int64))

    def forward(self, x):
        ops = torch.ops.quantized_decomposed
        x = ops.quantize_per_tensor(x, 0.05, 0, -128, 127, torch.int8)
        x = ops.dequantize_per_tensor(x, 0.05, 0, -128, 127, torch.int8)
        weight = ops.dequantize_per_channel(
            self.frozen, self.scales, self.zeros, 0, -127, 127, torch.int8
        )
        return nn.functional.linear(x, weight)


def pruned():
    net = nn.Sequential(nn.Linear(16, 16))
    prune.l1_unstructured(net[0], "weight", 0.5)
    return net


def weight_only():
    net = nn.Sequential(nn.Linear(16, 16))
    weight = torch.randint(-7, 8, (16, 16)).float().as_subclass(WeightOnly)
    net[0].weight = nn.Parameter(weight, requires_grad=False)
    return net


def brevitas():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 4), QuantLinear(4, 3))


def pt2e():
    return torch.export.export(Pt2e(), (torch.ones(4, 16),)).module(check_guards=False)


@pytest.mark.parametrize("make", [pruned, weight_only, brevitas, pt2e])
def test_they_compile_as_they_are(make):
    torch.manual_seed(0)
    net = make()
    assert is_foreign(net)
    assert not is_foreign(plain(net))
    x = torch.randn(4, 16)
    found = twillcore.compile(net, x, "tiny").run(x, engine="functional").outputs[0]
    wanted = twillcore.compile(plain(net), x, "tiny").run(x, engine="functional").outputs[0]
    assert torch.equal(found, wanted)
    expected = plain(net)(x)
    assert (found - expected).norm() < 0.03 * expected.norm()


def test_graphs_of_pt2e_keep_their_weights():
    net = pt2e()
    x = torch.randn(4, 16)
    weight = net.frozen * net.scales[:, None]
    torch.testing.assert_close(plain(net)(x), x @ weight.T)
