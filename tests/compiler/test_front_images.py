"""Convolutional networks through the front end: the reference computes nearly what torch does."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from twillcore.compiler.calibrate import calibrate
from twillcore.compiler.errors import CompileError
from twillcore.compiler.float_graph import FloatConv, FloatMaxPool
from twillcore.compiler.front import run_front
from twillcore.compiler.graph import Concat, Conv, Linear, Map, MaxPool
from twillcore.compiler.host import Interface, chip_arguments
from twillcore.compiler.serialize import graph_from_bytes, graph_to_bytes
from twillcore.compiler.shares import LutShare, Shares
from twillcore.config import PRESETS
from twillcore.isa import Function
from twillcore.sim.reference import run_graph

CONFIG = PRESETS["tiny"].replace(tap_depth=128)
BARE = CONFIG.replace(  # no vector engine, no wide memory
    wide_depth=0, lane_depth=0, norm_depth=0, operand_depth=0
)
BOTH = CONFIG.replace(lut_columns=16, lut_weight_depth=256)


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def trained(module, *shape):
    """Give batch norms statistics and parameters as if trained on images of ``shape``."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.5, 0.5)
    module.train()
    for _ in range(20):
        module(images(8, *shape) if len(shape) > 2 else torch.randn(8, *shape))
    return module.eval()


def images(*shape):
    """Return random images with a structure larger than a pixel."""
    coarse = torch.randn(*shape[:-2], *(-(-n // 3) for n in shape[-2:]))
    smooth = functional.interpolate(coarse, scale_factor=3.0)[..., : shape[-2], : shape[-1]]
    return smooth + 0.3 * torch.randn(*shape)


def outputs_of(front, *inputs):
    """Run prefix, reference and suffix."""
    interface = Interface.from_json(front.interface.to_json())  # as a program file does
    assert interface == front.interface
    with torch.no_grad():
        results = front.programs.prefix(*inputs)
        integers, masks = chip_arguments(interface, results)
        values = run_graph(front.graph, {**integers, **masks})
        chip = [
            torch.from_numpy(np.ascontiguousarray(t.dequantise(values[t.name])))
            for t in interface.chip_outputs
        ]
        return front.programs.suffix(*chip, *results[len(front.programs.sources) :])


def check(module, shape, *, cosine=0.995, config=CONFIG, make=images, **options):
    """Compile ``module`` for images of ``shape``, compare on the first; return the front end."""
    module.eval()
    samples = [(make(*shape),) for _ in range(12)]
    front = run_front(module, samples[0], config, samples, **options)
    (x,) = samples[0]
    with torch.no_grad():
        wanted = torch.utils._pytree.tree_leaves(module(x))
    for a, b in zip(wanted, outputs_of(front, x), strict=True):
        assert a.shape == b.shape
        similarity = functional.cosine_similarity(a.flatten().double(), b.flatten().double(), 0)
        assert similarity > cosine, f"cosine {similarity}\n{front.graph}"
    return front


def kinds(front):
    return [type(op).__name__ for op in front.graph.ops]


def conv(inputs, outputs, kernel=3, stride=1, activation=nn.ReLU, **options):
    options = {"padding": kernel // 2, "bias": False} | options
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, **options),
        nn.BatchNorm2d(outputs),
        activation(),
    )


class Basic(nn.Module):
    """A block of ResNet."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.a, self.b = (
            conv(inputs, outputs, 3, stride),
            conv(outputs, outputs, 3, 1, nn.Identity),
        )
        self.down = None
        if stride > 1 or inputs != outputs:
            self.down = conv(inputs, outputs, 1, stride, nn.Identity)

    def forward(self, x):
        y = self.b(self.a(x))
        return functional.relu(y + (x if self.down is None else self.down(x)))


class Inverted(nn.Module):
    """A block of MobileNet-V2."""

    def __init__(self, channels, activation=nn.ReLU6):
        super().__init__()
        inside = 3 * channels
        self.widen = conv(channels, inside, 1, activation=activation)
        self.filter = conv(inside, inside, 3, activation=activation, groups=inside)
        self.narrow = conv(inside, channels, 1, activation=nn.Identity)

    def forward(self, x):
        return x + self.narrow(self.filter(self.widen(x)))


def test_plain_network():
    module = nn.Sequential(
        conv(3, 16), nn.MaxPool2d(2), conv(16, 24), nn.Dropout2d(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(24 * 4, 10),
    )  # fmt: skip
    front = check(trained(module, 3, 8, 8), (1, 3, 8, 8))
    assert kinds(front) == ["Conv", "MaxPool", "Conv", "Conv", "Conv"]
    assert front.graph.ops[-1].weight.shape == (10, 2, 2, 24)  # the whole map
    assert [t.grid for t in front.graph.tensors.values()] == [
        (8, 8), (8, 8), (4, 4), (4, 4), (2, 2), (1, 1)
    ]  # fmt: skip
    assert front.graph.tensors[front.graph.outputs[0]].bits == 16


@pytest.mark.parametrize("config", [CONFIG, BARE], ids=["tiny", "without wide memory"])
def test_residual_network(config):
    module = nn.Sequential(
        conv(3, 16), Basic(16, 16, 1), Basic(16, 16, 1), Basic(16, 32, 2), Basic(32, 32, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    front = check(trained(module, 3, 12, 12), (2, 3, 12, 12), cosine=0.99, config=config)
    assert kinds(front) == ["Conv"] * 11 + ["Linear"]
    tensors, added = front.graph.tensors, [op for op in front.graph.ops if op.residual]
    assert len(added) == 4
    for op in added:  # int8, and powers of two apart
        assert op.function == Function.RELU
        assert tensors[op.residual].bits == tensors[op.out].bits == 8
        steps = int(op.narrow_shift[0]) + op.residual_shift
        assert tensors[op.out].scale == tensors[op.residual].scale * 2.0**steps
    bits = 16 if config.wide_depth else 8
    assert tensors[front.graph.outputs[0]].bits == bits


@pytest.mark.parametrize("activation", [nn.ReLU6, nn.ReLU, nn.Hardswish, nn.SiLU, nn.Hardtanh])
def test_mobile_network(activation):
    module = nn.Sequential(
        conv(3, 16, 3, 2, activation), Inverted(16, activation), Inverted(16, activation),
        conv(16, 32, 1, activation=activation),
    )  # fmt: skip
    front = check(trained(module, 3, 12, 12), (1, 3, 12, 12), cosine=0.99)
    assert kinds(front) == ["Conv"] * 8
    functions = {op.function for op in front.graph.ops}
    clips = activation in (nn.ReLU6, nn.ReLU, nn.Hardtanh)
    assert (Function.TABLE in functions) == (not clips)


def test_saturation_is_the_clip_of_relu6():
    module = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 1))
    with torch.no_grad():
        module[0].weight.mul_(20)
    front = check(module, (1, 4, 6, 6))
    tensor = front.graph.tensors[front.graph.ops[0].out]
    factors = 1 if tensor.channel_shift is None else 2.0**tensor.channel_shift
    assert np.max(tensor.scale * factors) * 127 == pytest.approx(6, rel=1e-6)


def test_clip_of_a_sum_is_a_table():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            y = self.a(x)
            return functional.relu6(self.b(y) + y)

    net = Net()
    nn.init.uniform_(net.b.weight, -3, 3)
    front = check(net, (1, 4, 6, 6))
    assert [op.function for op in front.graph.ops] == [Function.NONE, Function.TABLE]


def test_joined_channels():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(8, 8, 1), conv(8, 12, 3)
            self.pool, self.c = nn.MaxPool2d(3, 1, 1), conv(8, 5, 1)
            self.dense, self.last = conv(25, 7, 3), conv(32, 6, 1)

        def forward(self, x):
            x = torch.cat([self.a(x), self.b(x), self.c(self.pool(x))], 1)
            return self.last(torch.cat([self.dense(x), x], dim=-3))

    front = check(trained(Net(), 8, 7, 7), (1, 8, 7, 7))
    tensors = front.graph.tensors
    joined = [op for op in front.graph.ops if isinstance(op, Concat)]
    assert [len(op.parts) for op in joined] == [3, 2]
    assert len({tensors[name].scale for op in joined for name in (*op.parts, op.out)}) == 1


def test_input_that_is_joined():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(12, 8, 3)

        def forward(self, x):
            return self.b(torch.cat([x, self.a(x)], 1))

    assert kinds(check(Net(), (1, 4, 6, 6))) == ["Conv", "Concat", "Conv"]


CONVOLUTIONS = {
    "stride": {"kernel_size": 3, "stride": 2, "padding": 1},
    "stride 4": {"kernel_size": 5, "stride": 4, "padding": 2},
    "tuple": {"kernel_size": (3, 5), "padding": (0, 2)},
    "same": {"kernel_size": 4, "padding": "same"},
    "valid": {"kernel_size": (1, 3), "padding": "valid"},
    "dilation": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "dilation in one direction": {"kernel_size": (1, 3), "dilation": (1, 2)},
    "uneven dilations": {"kernel_size": 3, "dilation": (3, 1), "padding": (2, 1)},
    "same, with uneven dilations": {"kernel_size": (3, 4), "dilation": (1, 2), "padding": "same"},
    "uneven dilations and strides": {"kernel_size": 2, "dilation": (4, 3), "stride": (1, 2)},
    "groups": {"kernel_size": 3, "groups": 4},
    "depthwise": {"kernel_size": 3, "groups": 12, "padding": 1, "out_channels": 12},
    "depth multiplier": {"kernel_size": 3, "groups": 12, "out_channels": 24},
    "1x1 stride 2": {"kernel_size": 1, "stride": 2},
    "no bias": {"kernel_size": 1, "bias": False},
    "whole map": {"kernel_size": 10, "stride": 3},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("first", [False, True], ids=["inside", "of the input"])
def test_convolution(name, first):
    layer = nn.Conv2d(12, **({"out_channels": 8} | CONVOLUTIONS[name]))
    module = layer if first else nn.Sequential(nn.Conv2d(3, 12, 1), nn.ReLU(), layer)
    check(module, (2, 12 if first else 3, 10, 10), cosine=0.998)


def test_convolution_in_one_direction():
    module = nn.Sequential(
        nn.Conv1d(6, 8, 5, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(8, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip
    front = check(trained(module, 6, 20), (2, 6, 20), make=torch.randn)
    assert kinds(front) == ["Conv", "MaxPool", "Conv", "Conv", "Linear"]


def test_image_without_batch():
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 5, 2))
    check(module, (3, 8, 8), make=torch.randn)


POOLS = {
    "max": nn.MaxPool2d(2),
    "overlapping max": nn.MaxPool2d(3, 2, 1),
    "dilated max": nn.MaxPool2d((2, 1), 1, dilation=(3, 1)),
    "unevenly dilated max": nn.MaxPool2d((2, 3), (1, 2), (1, 1), (4, 2)),
    "max of four": nn.MaxPool2d(4),
    "ceil_mode without effect": nn.MaxPool2d(2, ceil_mode=True),
    "average": nn.AvgPool2d(2),
    "average with padding": nn.AvgPool2d(3, 2, 1),
    "average of four": nn.AvgPool2d(4),
    "adaptive": nn.AdaptiveAvgPool2d((2, 4)),
    "adaptive, the same": nn.AdaptiveAvgPool2d(8),
    "global": nn.AdaptiveAvgPool2d(1),
}


@pytest.mark.parametrize("name", POOLS)
def test_pooling(name):
    check(nn.Sequential(nn.Conv2d(3, 8, 1), POOLS[name], nn.Conv2d(8, 6, 1)), (1, 3, 8, 8))


@pytest.mark.parametrize("keepdim", [False, True])
def test_mean_over_all_pixels(keepdim):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 5)

        def forward(self, x):
            y = functional.relu(self.a(x)).mean((2, 3), keepdim=keepdim)
            return self.b(y.flatten(1))

    assert kinds(check(Net(), (2, 3, 6, 6))) == ["Conv", "Conv", "Linear"]


def test_mean_over_more_pixels_than_a_window_has_taps():
    module = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    front = check(module, (1, 3, 20, 20))
    assert [op.weight.shape[1:3] for op in front.graph.ops[1:3]] == [(20, 1), (1, 20)]


def test_tokens_of_a_feature_map():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 16, 4, stride=4)
            self.layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)

        def forward(self, x):
            return self.layer(self.patches(x).flatten(2).transpose(1, 2))

    front = check(Net(), (1, 3, 12, 12), config=PRESETS["tiny"], cosine=0.99)
    assert kinds(front)[0] == "Linear"  # the host folds patches into channels


def test_shuffled_and_divided_channels():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = conv(6, 16, 1), conv(8, 8, 3), nn.Conv2d(16, 6, 3)

        def forward(self, x):
            left, right = self.a(x).chunk(2, 1)
            y = torch.cat([left, self.b(right)], 1)
            y = y.unflatten(1, (2, 8)).transpose(1, 2).flatten(1, 2)
            return self.c(y)

    check(trained(Net(), 6, 6, 6), (1, 6, 6, 6))


def test_sum_that_no_convolution_takes_is_a_map():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(4, 8), conv(4, 8)

        def forward(self, x):
            return functional.relu(self.a(x) * 0.5 - self.b(x))

    front = check(trained(Net(), 4, 6, 6), (1, 4, 6, 6), config=BARE)
    assert kinds(front) == ["Conv", "Conv", "Map", "Map"]
    last = front.graph.ops[-1]
    assert isinstance(last, Map)
    assert last.residual
    assert last.function == Function.RELU


def test_batch_norm_before_a_convolution():
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1),
    )  # fmt: skip
    front = check(trained(module, 3, 9, 9), (1, 3, 9, 9))
    assert kinds(front) == ["Conv", "Conv", "Map", "Conv"]  # padding is not normalised


def test_sparse_weights_are_detected_in_every_tap():
    layer = nn.Conv2d(16, 8, 3)
    with torch.no_grad():
        kept = torch.arange(16) % 4 < 2
        layer.weight.mul_(kept[None, :, None, None])
    front = check(nn.Sequential(nn.Conv2d(3, 16, 1), layer), (1, 3, 6, 6))
    assert [op.beats for op in front.graph.ops] == [3, 4]


@pytest.mark.parametrize("size", [(9, 11), (12, 10)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(7, 2, 3), (3, 2, 1), (2, 2, 0), (5, 3, (0, 2)), (4, 4, 0)]
)
def test_folded_input(size, kernel, stride, padding):
    layer = nn.Conv2d(3, 8, kernel, stride, padding)
    front = check(layer, (2, 3, *size), fold_inputs=True, cosine=0.999)
    assert [op.stride for op in front.float_graph.ops] == [1]
    if stride == 2:
        front = check(layer, (2, 3, *size), fold_inputs=False, cosine=0.999)
        assert [op.stride for op in front.float_graph.ops] == [2]


def test_folded_channels_fill_blocks_evenly():
    front = check(nn.Conv2d(3, 8, 7, 2, 3), (1, 3, 20, 20), fold_inputs=True)
    (op,), (x,) = front.graph.ops, front.graph.inputs
    assert op.weight.shape == (8, 4, 4, 14)
    assert op.beats == 6
    assert not op.weight[..., 6:8].any()
    assert not op.weight[:, 0, :, :6].any()  # the line above the 7 of the kernel
    assert front.graph.tensors[x].grid == (10, 10)
    image = torch.arange(3 * 400.0).reshape(1, 3, 20, 20)
    integers, _ = chip_arguments(front.interface, front.programs.prefix(image * 1e-9))
    assert (integers[x][..., 6:8] == 0).all()
    layout = front.interface.chip_inputs[0].layout
    pixels = layout.from_framework(image.numpy(), (1, 100, 14))
    assert pixels[0, 11, :6].tolist() == [42, 442, 842, 43, 443, 843]  # line 2, columns 2 and 3
    assert pixels[0, 11, 8:].tolist() == [62, 462, 862, 63, 463, 863]


def test_folding_is_chosen_by_the_cores_that_compute_the_layer():
    layer = nn.Conv2d(3, 32, 7, 2, 3)
    dsp = run_front(layer.eval(), (images(1, 3, 16, 16),), CONFIG)
    lut = run_front(layer, (images(1, 3, 16, 16),), BOTH, shares=Shares({}, LutShare(4, 1.0)))
    assert dsp.graph.ops[0].stride == 2  # 49 taps of 3 beats, not 16 of 2 * 6
    assert lut.graph.ops[0].stride == 1  # 16 taps of 2 * 4 bits, not 49 of 4


def test_strides_of_an_input_with_two_readers():
    class Net(nn.Module):
        def __init__(self, stride):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, stride), nn.Conv2d(3, 8, 3, stride)

        def forward(self, x):
            return self.a(x), self.b(x)

    front = check(Net(4), (1, 3, 12, 12))
    assert [type(op) for op in front.float_graph.ops] == [FloatConv, FloatMaxPool] * 2
    front = check(Net(3), (1, 3, 12, 12))
    assert [op.stride for op in front.float_graph.ops] == [(3, 1), (1, 3)] * 2


def test_stride_4_with_residual():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.a, self.b = nn.Conv2d(8, 8, 3, 4), nn.Conv2d(8, 8, 3, 4)

        def forward(self, x):
            x = self.stem(x)
            return functional.relu(self.a(x) + self.b(x))

    check(Net(), (1, 3, 12, 12))


# The two cores


def shared(module, shape, share, **options):
    return check(module, shape, config=BOTH, shares=Shares({}, share), **options)


@pytest.mark.parametrize(
    ("bits", "cosine"), [(8, 0.999), (6, 0.998), (4, 0.97), (2, 0.7), (1, 0.3)]
)
@pytest.mark.parametrize("share", [None, 0.5, 1.0])
def test_low_bits_on_the_lut_core(bits, cosine, share):
    module = nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 1))
    front = shared(module, (1, 8, 6, 6), LutShare(bits, share), cosine=cosine)
    for op in front.graph.ops:
        assert op.lut_bits == bits
        assert op.lut_channels == {None: op.lut_channels, 0.5: 16, 1.0: 32}[share]
        assert op.lut_channels % 8 == 0
        there = op.weight[32 - op.lut_channels :]
        assert there.any()
        assert there.min() >= -(1 << bits - 1)
        assert there.max() <= (1 << bits - 1) - 1


def test_weights_of_few_bits_stay_exact_on_the_lut_core():
    layer = nn.Conv2d(8, 16, 3, bias=False)
    integers = torch.randint(-7, 8, layer.weight.shape)
    integers[:, 0, 0, 0] = 7
    with torch.no_grad():
        layer.weight.copy_(integers * torch.rand(16, 1, 1, 1))
    module = nn.Sequential(nn.Conv2d(8, 8, 1), layer)
    with torch.no_grad():  # ranges that would have factors between channels
        module[0].weight.mul_(2.0 ** torch.arange(8).reshape(8, 1, 1, 1))
    shares = Shares({"1": LutShare(4, 1.0)})
    front = check(module, (1, 8, 6, 6), config=BOTH, shares=shares, cosine=0.999)
    assert (front.graph.ops[1].weight == integers.permute(0, 2, 3, 1).numpy()).all()


def test_depthwise_convolutions_stay_on_the_dsp_core():
    module = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=16), nn.AvgPool2d(2))
    front = shared(module, (1, 3, 6, 6), LutShare(8, 1.0))
    assert [op.lut_channels for op in front.graph.ops] == [16, 0, 0]


def test_a_policy_names_layers_or_what_they_are_in():
    module = nn.Sequential(conv(8, 16), nn.Sequential(conv(16, 16), conv(16, 16)))
    shares = Shares({"1": LutShare(4, 1.0), "1.0.0": LutShare(4, 0.0)}, LutShare(8, 0.5))
    front = check(trained(module, 8, 6, 6), (1, 8, 6, 6), config=BOTH, shares=shares, cosine=0.95)
    assert [op.lut_channels for op in front.graph.ops] == [8, 0, 16]


def test_unknown_layers_of_a_policy_are_all_named():
    shares = Shares({"a": LutShare(4), "0": LutShare(4), "0.1": LutShare(4)})
    with pytest.raises(CompileError, match=r"the network has no layer a, 0\.1$"):
        check(nn.Sequential(nn.Conv2d(3, 8, 1)), (1, 3, 6, 6), config=BOTH, shares=shares)


def test_configuration_without_lut_core():
    shares = Shares({"0": LutShare(4, 0.5)})
    with pytest.raises(CompileError, match=r"'tiny' has no LUT core .* a share of 0$"):
        check(nn.Sequential(nn.Conv2d(3, 8, 1)), (1, 3, 6, 6), shares=shares)
    with pytest.raises(CompileError, match="a share of all layers"):
        check(nn.Conv2d(3, 8, 1), (1, 3, 6, 6), shares=Shares({}, LutShare(8)))
    shares = Shares({"0": LutShare(4)})  # as much as there is: nothing
    front = check(nn.Sequential(nn.Conv2d(3, 8, 1)), (1, 3, 6, 6), shares=shares)
    assert front.graph.ops[0].lut_channels == 0


def test_graph_as_bytes_keeps_grids():
    module = nn.Sequential(conv(3, 8), nn.MaxPool2d(2), conv(8, 8), nn.Flatten(), nn.Linear(32, 5))
    graph = check(trained(module, 3, 4, 4), (1, 3, 4, 4)).graph
    again = graph_from_bytes(graph_to_bytes(graph))
    assert str(again) == str(graph)
    assert [t.grid for t in again.tensors.values()] == [t.grid for t in graph.tensors.values()]
    assert all(isinstance(op, Conv | MaxPool | Linear) for op in again.ops)


def test_large_calibration_batches_are_divided(monkeypatch):
    monkeypatch.setattr("twillcore.compiler.calibrate.MOST_VALUES", 1)
    front = check(nn.Conv2d(3, 8, 3), (1, 3, 6, 6))
    sizes = []
    monkeypatch.setattr(
        "twillcore.compiler.calibrate.evaluate",
        lambda graph, inputs, masks, record: sizes.append(len(inputs["input_1"])),
    )
    x = np.zeros((1, 36, 3), np.float32)
    calibrate(front.float_graph, [({"input_1": x}, {})] * 3)
    assert sizes == [1, 1, 1]
