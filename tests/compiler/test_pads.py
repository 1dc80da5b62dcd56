"""Padding as an operator of its own, and max pooling into a given number of pixels."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from twillcore.compiler.errors import CompileError
from twillcore.compiler.float_graph import FloatConv, FloatMaxPool
from twillcore.compiler.front import run_front
from twillcore.compiler.host import chip_arguments
from twillcore.compiler.pipeline import compile_graph
from twillcore.config import PRESETS
from twillcore.sim.functional import FunctionalEngine
from twillcore.sim.reference import run_graph

CONFIG = PRESETS["tiny"].replace(tap_depth=128)
pad, conv = functional.pad, nn.Conv2d


class Net(nn.Module):
    """A convolution of 3 to 12 channels, and ``function`` of its result and of ``layers``."""

    def __init__(self, function, *layers):
        super().__init__()
        self.first, self.function = conv(3, 12, 3, padding=1), function
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return self.function(self.first(x), *self.layers)


def check(module, *shape):
    """Compile and run: as the reference bit by bit, as torch nearly; return the float ops."""
    torch.manual_seed(0)
    module = module.eval()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.reset_parameters()
    samples = [(torch.randn(*shape),) for _ in range(8)]
    front = run_front(module, samples[0], CONFIG, samples)
    values, _ = chip_arguments(front.interface, front.programs.prefix(*samples[0]))
    outputs = (
        FunctionalEngine(garbage=1, strict=True).run(compile_graph(front.graph), values).outputs
    )
    for name, expected in run_graph(front.graph, values).items():
        np.testing.assert_array_equal(outputs[name], expected)
    chip = [torch.from_numpy(np.ascontiguousarray(t.dequantise(outputs[t.name])))
            for t in front.interface.chip_outputs]  # fmt: skip
    with torch.no_grad():
        wanted, got = module(*samples[0]), front.programs.suffix(*chip)[0]
    assert wanted.shape == got.shape
    assert functional.cosine_similarity(wanted.flatten(), got.flatten(), 0) > 0.99
    return front.float_graph.ops[1:]


#: Function of an image of 8 x 8 pixels, layers for it, (top, left) of the windows.
FOLDED = {
    "convolution": (lambda x, a: a(pad(x, (0, 1, 2, 1))), conv(12, 8, 3, 2), (2, 0)),
    "with a padding of its own": (
        lambda x, a: a(pad(x, (0, 1, 2, 1))), conv(12, 8, 3, padding=1), (3, 1),
    ),
    "twice": (lambda x, a: a(pad(pad(x, (0, 1, 2, 1)), (1, 0))), conv(12, 8, 3), (2, 1)),
    "ZeroPad2d": (
        lambda x, z, a: a(z(x)), nn.ZeroPad2d((1, 2, 0, 1)), conv(12, 8, 4, groups=4), (0, 1),
    ),
    "average": (lambda x: functional.avg_pool2d(pad(x, (1, 1, 1, 0)), 3, 2), (1, 1)),
    "max with -inf": (
        lambda x: functional.max_pool2d(pad(x, (0, 1, 1, 0), value=-math.inf), 3, 2), (1, 0),
    ),
    "max of no negative": (
        lambda x: functional.max_pool2d(pad(functional.relu(x), (1, 0, 0, 1)), 3, 2), (0, 1),
    ),
    "dilated max": (
        lambda x: functional.max_pool2d(pad(functional.relu(x), (2, 0)), (2, 3), 1, 0, (3, 2)),
        (0, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
def test_windows_take_padding_up(name):
    function, *layers, padding = FOLDED[name]
    (op,) = check(Net(function, *layers), 2, 3, 8, 8)
    assert op.padding == padding


#: The same, and the ops: the padding is one of them.
COMPUTED = {
    "max of negative values": (
        lambda x: functional.max_pool2d(pad(x - 9, (0, 1, 0, 1)), 3, 2), [FloatConv, FloatMaxPool],
    ),
    "max of windows of zeros only": (
        lambda x: functional.max_pool2d(pad(functional.relu(x), (3, 0, 3, 0)), 2, 2),
        [FloatConv, FloatMaxPool],
    ),
    "max of windows around the image": (
        lambda x: functional.max_pool2d(pad(functional.relu(x), (4, 0)), (1, 2), 1, 0, (1, 3)),
        [FloatConv, FloatMaxPool],
    ),
    "function": (
        lambda x, a: a(functional.silu(pad(x, (1, 1, 1, 0)))), conv(12, 8, 1),
        [FloatConv, FloatConv],
    ),
    "concatenation": (
        lambda x, a: a(torch.cat([pad(x, (1, 1, 1, 0)), pad(x, (2, 0, 0, 1))], 1)),
        conv(24, 8, 1), 4,
    ),
    "sum": (
        lambda x, a, b: b(pad(a(x), (1, 1, 1, 1)) + x), conv(12, 12, 3), conv(12, 4, 1), 3,
    ),
    "two readers": (
        lambda x, a, b: (lambda p: a(p) + b(functional.silu(p)))(pad(x, (1, 0, 1, 0))),
        conv(12, 5, 3), conv(12, 5, 3), 3,
    ),
    "channels": (
        lambda x, a: a(functional.relu(x)) + pad(functional.max_pool2d(x, 1, 2),
                                                 (0, 0, 0, 0, 1, 3)),
        conv(12, 16, 3, 2, padding=1), 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPUTED)
def test_others_get_an_image_with_the_padding(name):
    function, *layers, kinds = COMPUTED[name]
    ops = check(Net(function, *layers), 2, 3, 8, 8)
    if isinstance(kinds, int):
        assert len(ops) >= kinds
    else:
        assert [type(op) for op in ops] == kinds


def test_the_host_pads_what_leaves_the_chip():
    assert not check(Net(lambda x: pad(x, (1, 1, 1, 1))), 1, 3, 6, 6)


def test_padding_in_one_direction():
    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 4, 3)

        def forward(self, x):
            return functional.adaptive_max_pool1d(self.b(pad(self.a(x), (2, 0))), 4)

    ops = check(Line(), 2, 3, 16)
    assert ops[0].padding == (0, 2)
    assert ops[1].kernel == (1, 4)


@pytest.mark.parametrize(
    ("size", "output", "kernels"),
    [
        ((8, 8), (2, 4), [(4, 2)]),
        ((6, 6), 1, [(6, 6)]),
        ((6, 6), 6, []),
        ((12, 8), (None, 4), [(1, 2)]),
        ((16, 12), 1, [(16, 1), (1, 12)]),
    ],
)
def test_adaptive_max_pooling(size, output, kernels):
    ops = check(Net(lambda x, pool, a: a(pool(x)), nn.AdaptiveMaxPool2d(output), conv(12, 4, 1)),
                1, 3, *size)  # fmt: skip
    assert [op.kernel for op in ops if isinstance(op, FloatMaxPool)] == kernels


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own
def test_decomposed_programs():
    x = torch.randn(1, 3, 8, 8)
    module = Net(lambda x, a: a(functional.max_pool2d(pad(x, (1, 0, 1, 0)), 2)), conv(12, 4, 1))
    exported = torch.export.export(module.eval(), (x,)).run_decompositions()
    front = run_front(exported, (x,), CONFIG)
    kinds = [type(op) for op in front.float_graph.ops]
    assert kinds == [FloatConv, FloatConv, FloatMaxPool, FloatConv]


REFUSED = {
    "mode 'reflect': zeros only": lambda x: pad(x, (1, 1, 1, 1), mode="reflect"),
    "a value of 1: zeros only": lambda x: pad(x, (1, 1), value=1.0),
    "padding of -1: an image is not cropped": lambda x: pad(x, (-1, 1)),
    "padding with -inf is for max pooling": lambda x: pad(x, (1, 1), value=-math.inf),
    r"\(8, 8\) pixels do not divide evenly into \(3, 3\)": (
        lambda x: functional.adaptive_max_pool2d(x, 3)
    ),
    "indices of maxima are not on the chip": lambda x: (
        lambda most, index: most + index.float()
    )(*functional.max_pool2d(x, 2, return_indices=True)),
    "pixels and channels can be padded only": (
        lambda x: pad(x, (0, 0, 0, 0, 0, 0, 0, 1))
    ),
    "channels with zeros": lambda x: pad(x, (0, 0, 0, 0, 0, 4), value=-math.inf),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message):
    function = REFUSED[message]
    x = torch.randn(1, 3, 8, 8)
    size = function(torch.zeros(1, 12, 8, 8)).shape[1]
    module = Net(lambda x, a: a(function(x)), conv(size, 4, 1))
    with pytest.raises(CompileError, match=message):
        run_front(module.eval(), (x,), CONFIG)


def test_rows_of_tokens_are_not_padded():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.b(pad(self.a(x), (0, 0, 1, 0)))

    with pytest.raises(CompileError, match="pixels and channels can be padded only"):
        run_front(Tokens().eval(), (torch.randn(1, 5, 8),), CONFIG)
