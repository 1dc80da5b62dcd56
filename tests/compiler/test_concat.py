"""Concatenations of channels that fill no whole blocks, and all that may read them."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.compiler.test_strides import run
from twillcore.compiler.aligned_concat import align_concats
from twillcore.compiler.float_graph import FloatConcat, FloatGraph, FloatTensor
from twillcore.compiler.front import run_front
from twillcore.compiler.graph import Concat, Conv, Graph, Tensor
from twillcore.compiler.host import chip_arguments
from twillcore.compiler.verify import verify
from twillcore.config import PRESETS
from twillcore.sim.reference import run_graph

CONFIG = PRESETS["tiny"].replace(tap_depth=128)
N = 20  # channels of 12, 5 and 3


class Joined(nn.Module):
    """A convolution, another one with ReLU, and the input: 12, 5 and 3 channels; then ``tail``."""

    def __init__(self, tail):
        super().__init__()
        self.a, self.b, self.tail = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(3, 5, 1), tail

    def forward(self, x):
        return self.tail(torch.cat([self.a(x), torch.relu(self.b(x)), x], 1))


class Apply(nn.Module):
    """``function`` of the input and of what layers make of it."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


READERS = {
    "convolution": (nn.Conv2d(N, 8, 3), 4),
    "linear after pooling": (
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(N, 5)), 5,
    ),
    "linear after flattening": (nn.Sequential(nn.Flatten(), nn.Linear(N * 36, 5)), 4),
    "pool": (nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(N, 4, 1)), 5),
    "activation": (nn.Sequential(nn.SiLU(), nn.Conv2d(N, 4, 1)), 5),
    "batch norm": (nn.Sequential(nn.BatchNorm2d(N), nn.ReLU(), nn.Conv2d(N, 3, 1)), 5),
    "residual of a layer": (
        Apply(lambda x, a, b: b(functional.relu(a(x) + x)), nn.Conv2d(N, N, 3, padding=1),
              nn.Conv2d(N, 5, 1)), 5,
    ),
    "sum with another layout": (
        Apply(lambda x, a, b: b(functional.silu(x) + 2 * a(x)), nn.Conv2d(N, N, 1),
              nn.Conv2d(N, 4, 1)), 6,
    ),
    "concatenation": (
        Apply(lambda x, a, b: b(torch.cat([x, a(x), x], 1)), nn.Conv2d(N, 7, 1),
              nn.Conv2d(2 * N + 7, 9, 1)), 6,
    ),
    "depthwise": (nn.Sequential(nn.Conv2d(N, N, 3, groups=N), nn.ReLU(), nn.Conv2d(N, 3, 1)), 5),
    "groups": (nn.Conv2d(N, 10, 3, groups=2), 5),  # of a copy without gaps
    "layer norm": (
        Apply(lambda x, a, b: b(a(x.flatten(2).transpose(1, 2))), nn.LayerNorm(N),
              nn.Linear(N, 6)), 6,
    ),
    "output": (nn.Identity(), 3),
    "pool that is an output": (nn.MaxPool2d(2), 4),
    "uneven stride": (nn.Conv2d(N, 8, 3, 3), 5),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_readers(name):
    torch.manual_seed(0)
    tail, ops = READERS[name]
    module = Joined(tail).eval()
    samples = [(torch.randn(2, 3, 6, 6),) for _ in range(12)]
    front = run_front(module, samples[0], CONFIG, samples)
    assert len(front.graph.ops) == ops
    values, _ = chip_arguments(front.interface, front.programs.prefix(*samples[0]))
    _, outputs = run(front.graph, values)
    (chip,) = front.interface.chip_outputs
    got = torch.from_numpy(np.ascontiguousarray(chip.dequantise(outputs[chip.name])))
    with torch.no_grad():
        wanted, got = module(*samples[0]), front.programs.suffix(got)[0]
    assert wanted.shape == got.shape
    assert functional.cosine_similarity(wanted.flatten(), got.flatten(), 0) > 0.99


def test_rows_that_are_no_pixels():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 6), nn.Linear(8, 11), nn.Linear(17, 5)

        def forward(self, x):
            return self.c(torch.cat([self.a(x), self.b(x)], -1))

    torch.manual_seed(0)
    x = (torch.randn(2, 9, 8),)
    front = run_front(Net().eval(), x, PRESETS["tiny"], [x])
    values, _ = chip_arguments(front.interface, front.programs.prefix(*x))
    run(front.graph, values)


def test_whole_blocks_stay_as_they_are():
    tensors = {name: FloatTensor(name, 1, 4, n, (2, 2)) for name, n in [("a", 8), ("b", 5)]}
    tensors["c"] = FloatTensor("c", 1, 4, 13, (2, 2))
    graph = FloatGraph(tensors, (FloatConcat("j", "c", ("a", "b")),), {}, {}, ())
    assert align_concats(graph, 8) is graph


def test_gaps_are_channels_of_the_integer_graph():
    channels = {"x": 3, "y": 9, "j": 8 + 16 + 3}
    tensors = {n: Tensor(n, 1, 6, count, 8, 1.0, None, (2, 3)) for n, count in channels.items()}
    weight = np.arange(27).reshape(9, 1, 1, 3).astype(np.int8)
    drain = {"bias": 0, "multiplier": 1 << 14, "shift": 15, "narrow_shift": 0}
    conv = Conv("c", "x", "y", weight, 1, (0, 0), 1, 1, 8,
                **{name: np.full(9, value) for name, value in drain.items()})  # fmt: skip
    graph = Graph(CONFIG, tensors, (conv, Concat("j", ("x", "y", "x"), "j")),
                  ("x",), ("j",))  # fmt: skip
    verify(graph)
    x = np.arange(18).reshape(1, 6, 3).astype(np.int8)
    joined = run(graph, {"x": x})[1]["j"]
    y = run_graph(graph, {"x": x})["j"][..., 8:17]
    assert y.any()
    gap = np.zeros((1, 6, 7), np.int64)
    expected = np.concatenate([x, gap[..., :5], y, gap, x], -1)
    np.testing.assert_array_equal(joined, expected)
