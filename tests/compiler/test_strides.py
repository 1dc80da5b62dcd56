"""Strides other than 1 and 2: of single layers and of networks, against torch and the reference."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.agree import maps
from twillcore import numerics
from twillcore.compiler.errors import CompileError
from twillcore.compiler.front import run_front
from twillcore.compiler.graph import Conv, Graph, MaxPool, Tensor
from twillcore.compiler.host import chip_arguments
from twillcore.compiler.pipeline import compile_graph
from twillcore.compiler.pitches import choose_pitches
from twillcore.config import PRESETS
from twillcore.isa import Opcode
from twillcore.sim.functional import FunctionalEngine
from twillcore.sim.reference import run_graph

CNN = maps.CNN
LANES_14 = CNN.replace(name="14 lanes", lanes=14, dsp_columns=24, lut_columns=16, operand_depth=0)
BANDS = CNN.replace(name="bands", activation_depth=128, wide_depth=64, weight_depth=192)
CONFIGS = {config.name: config for config in (CNN, LANES_14, BANDS)}
DRAIN = {"multiplier": 1 << 14, "shift": 21, "narrow_shift": 4}


def run(graph, inputs):
    """Compile and run; no word is read that nobody has written."""
    image = compile_graph(graph)
    outputs = FunctionalEngine(garbage=1, strict=True).run(image, inputs).outputs
    for name, expected in run_graph(graph, inputs).items():
        np.testing.assert_array_equal(outputs[name], expected)
    return image, outputs


def layer(
    config, grid, channels, outputs, kernel, stride, padding, batch=2, dilation=(1, 1)
):  # fmt: skip
    """A convolution (``outputs`` > 0) or a pooling, and its input."""
    rng = np.random.default_rng(sum(grid) + kernel[0] * stride[1])
    size = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, k, s, d in zip(grid, padding, kernel, stride, dilation, strict=True)
    )
    n = outputs or channels
    tensors = [
        Tensor("x", batch, grid[0] * grid[1], channels, 8, 1.0, None, grid),
        Tensor("y", batch, size[0] * size[1], n, 8, 1.0, None, size),
    ]
    if outputs:
        weight = rng.integers(-128, 128, (n, *kernel, channels)).astype(np.int8)
        drain = {key: np.full(n, value) for key, value in DRAIN.items()}
        bias = rng.integers(-99999, 99999, n)
        op = Conv("c", "x", "y", weight, stride, padding, dilation, 1, 8, bias=bias, **drain)
    else:
        op = MaxPool("p", "x", "y", kernel, stride, padding, dilation)
    x = rng.integers(-128, 128, tensors[0].shape).astype(np.int8)
    return Graph(config, {t.name: t for t in tensors}, (op,), ("x",), ("y",)), x


def image_of(x, grid):
    """(batch, rows, channels) integers as an image of doubles, in which torch is exact."""
    return torch.from_numpy(x.astype(np.float64)).unflatten(1, grid).permute(0, 3, 1, 2)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("stride", [(3, 1), (1, 2), (5, 2), (2, 1), (7, 2), (3, 2)])
@pytest.mark.parametrize(
    ("kernel", "padding"), [((3, 3), (1, 1)), ((1, 1), (0, 0)), ((4, 2), (2, 0))]
)
def test_convolutions_equal_those_of_torch(config, stride, kernel, padding):
    equals_torchs(config, stride, kernel, padding, (1, 1))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("dilation", [(1, 2), (3, 1), (2, 5)])
@pytest.mark.parametrize(("kernel", "padding"), [((3, 3), (1, 2)), ((4, 2), (4, 0))])
def test_dilated_convolutions_equal_those_of_torch(config, stride, kernel, padding, dilation):
    equals_torchs(config, stride, kernel, padding, dilation)


def equals_torchs(config, stride, kernel, padding, dilation):
    grid = (15, 13)
    graph, x = layer(CONFIGS[config], grid, 11, 19, kernel, stride, padding, dilation=dilation)
    _, outputs = run(graph, {"x": x})
    (op,) = graph.ops
    weight = torch.from_numpy(op.weight.astype(np.float64)).permute(0, 3, 1, 2)
    sums = functional.conv2d(image_of(x, grid), weight, None, stride, padding, dilation)
    sums = sums.flatten(2).transpose(1, 2).numpy().astype(np.int64)
    scaled = numerics.scale_accumulator(sums, op.bias, op.multiplier, op.shift)
    np.testing.assert_array_equal(outputs["y"], numerics.narrow(scaled, op.narrow_shift))
    assert outputs["y"].std() > 10


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    ("kernel", "stride"),
    [((1, 1), s) for s in [(3, 3), (5, 5), (6, 6), (7, 7), (1, 3), (4, 5), (3, 1), (2, 6), (6, 4)]]
    + [((3, 3), (3, 1)), ((3, 2), (5, 2)), ((2, 3), (1, 2))],
)
@pytest.mark.parametrize("dilation", [(1, 1), (2, 3)])
def test_pools_equal_those_of_torch(config, kernel, stride, dilation):
    grid = (20, 31)
    graph, x = layer(CONFIGS[config], grid, 13, 0, kernel, stride, (0, 0), dilation=dilation)
    _, outputs = run(graph, {"x": x})
    expected = functional.max_pool2d(image_of(x, grid), kernel, stride, 0, dilation)
    expected = expected.flatten(2).transpose(1, 2).numpy().astype(np.int64)
    np.testing.assert_array_equal(outputs["y"], expected)


def test_lines_within_the_map_share_a_window():
    graph, x = layer(CNN, (30, 8), 8, 8, (3, 3), (3, 1), (1, 0), batch=1)
    image, _ = run(graph, {"x": x})
    instructions = image.instructions()
    assert sum(i.opcode == Opcode.GEMM for i in instructions) == 10
    windows = [i for i in instructions if i.opcode == Opcode.WINDOW]
    assert [(i["y"], i["height"]) for i in windows] == [(0, 2), (1, 3)]


def test_a_lane_is_gathered_by_one_tap_and_lanes_behind_the_line_by_none():
    graph, x = layer(CNN, (1, 16), 8, 0, (1, 1), (1, 3), (0, 0), batch=1)  # 6 pixels on 4 lanes
    image, _ = run(graph, {"x": x})
    (gemm,) = (i for i in image.instructions() if i.opcode == Opcode.GEMM)
    (window,) = (i for i in image.instructions() if i.opcode == Opcode.WINDOW)
    assert (gemm["row_tiles"], window["taps"], window["height"], window["tile_y"]) == (2, 4, 2, 1)
    assert (window["width"], window["pitch"], window["tile_x"]) == (1, 4, 0)


def test_pitches_let_every_line_begin_a_row_tile():
    graph, _ = layer(LANES_14, (20, 31), 8, 0, (1, 1), (3, 3), (0, 0))
    pitches = choose_pitches(graph)
    assert pitches == {"x": 42, "y": 14}
    graph, _ = layer(LANES_14, (20, 31), 8, 0, (1, 1), (7, 3), (0, 0))
    assert choose_pitches(graph)["x"] % 2 == 0  # 7 lines of it begin a row tile
    graph, _ = layer(LANES_14, (20, 1023), 8, 0, (1, 1), (3, 3), (0, 0))
    with pytest.raises(CompileError, match="no pitches of the feature maps fit p on 14 lanes"):
        choose_pitches(graph)


def test_random_networks():
    kinds = ("uneven", "every", "conv", "map", "concat")
    refused = 0
    for seed in range(40):
        config = list(CONFIGS.values())[seed % 3]
        graph = maps.random_map_graph(seed, config, largest=24, kinds=kinds)
        try:
            run(graph, maps.random_map_inputs(graph, seed))
        except CompileError:
            refused += 1
    assert refused <= 4


# Through the front end

CONFIG = PRESETS["tiny"].replace(tap_depth=128)

LAYERS = {
    "stride 3": nn.Conv2d(8, 12, 3, 3),
    "stride 3, padded": nn.Conv2d(8, 12, 3, 3, padding=1),
    "stride 5": nn.Conv2d(8, 12, 3, 5),
    "stride 6": nn.Conv2d(8, 12, 5, 6, padding=2),
    "stride 7": nn.Conv2d(8, 12, 1, 7),
    "vertical": nn.Conv2d(8, 12, 3, (2, 1), padding=1),
    "horizontal": nn.Conv2d(8, 12, 3, (1, 2)),
    "both": nn.Conv2d(8, 12, (3, 2), (4, 3)),
    "depthwise": nn.Conv2d(8, 8, 3, 3, groups=8),
    "dilated": nn.Conv2d(8, 12, 3, 3, dilation=(3, 4)),
    "max": nn.MaxPool2d(3),
    "overlapping max": nn.MaxPool2d(4, 3, 1),
    "uneven max": nn.MaxPool2d((2, 1), (2, 1)),
    "every": nn.MaxPool2d(1, (3, 5)),
    "average": nn.AvgPool2d(3),
    "adaptive": nn.AdaptiveAvgPool2d((3, 9)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_networks(name):
    torch.manual_seed(3)
    part = LAYERS[name]
    channels = getattr(part, "out_channels", 8)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), part, nn.ReLU(), nn.Conv2d(channels, 6, 1)
    ).eval()  # fmt: skip
    samples = [(torch.randn(1, 3, 18, 27),) for _ in range(8)]
    front = run_front(module, samples[0], CONFIG, samples)
    values, _ = chip_arguments(front.interface, front.programs.prefix(*samples[0]))
    _, outputs = run(front.graph, values)
    (chip,) = front.interface.chip_outputs
    got = torch.from_numpy(np.ascontiguousarray(chip.dequantise(outputs[chip.name])))
    with torch.no_grad():
        wanted = module(*samples[0])
        similarity = functional.cosine_similarity(wanted.flatten(), got.flatten().float(), 0)
    assert similarity > 0.99


def test_a_residual_of_an_uneven_stride_is_added_in_the_drain():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, (2, 1), padding=1)
            self.c = nn.Conv2d(8, 8, 1, (2, 1))

        def forward(self, x):
            x = self.a(x)
            return self.b(x) + self.c(x)

    torch.manual_seed(0)
    x = (torch.randn(1, 3, 9, 10),)
    front = run_front(Net().eval(), x, CONFIG, [x])
    assert [type(op) for op in front.graph.ops] == [Conv] * 3
    values, _ = chip_arguments(front.interface, front.programs.prefix(*x))
    run(front.graph, values)
