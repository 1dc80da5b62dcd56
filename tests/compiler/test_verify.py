"""The verifier sees what is wrong with a graph; the graph survives a trip through bytes."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from twillcore.compiler.errors import CompileError
from twillcore.compiler.front import run_front
from twillcore.compiler.graph import Concat, Conv, Graph, MaxPool, Tensor
from twillcore.compiler.serialize import graph_from_bytes, graph_to_bytes
from twillcore.compiler.verify import verify
from twillcore.config import PRESETS


@pytest.fixture(scope="module")
def graph():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, activation="gelu").eval()
    return run_front(layer, (torch.randn(2, 5, 16),), PRESETS["tiny"]).graph


def changed(graph, kind, **changes):
    """Return ``graph`` with fields of its first op of a kind changed."""
    ops = list(graph.ops)
    index = next(i for i, op in enumerate(ops) if type(op).__name__ == kind)
    ops[index] = dataclasses.replace(ops[index], **changes)
    return dataclasses.replace(graph, ops=tuple(ops))


def test_good_graph_passes(graph):
    verify(graph)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("Linear", {"x": "nothing"}, "reads nothing before it is written"),
        ("Linear", {"out": "nowhere"}, "no tensor nowhere"),
        ("Linear", {"shift": np.full(16, 64)}, r"shift must be 0\.\.63, not 64\.\.64"),
        ("Linear", {"bias": np.zeros(3, np.int64)}, r"bias must have shape \(16,\), not \(3,\)"),
        ("Linear", {"beats": 1}, r"beats must be 8\.\.8, not 1"),
        ("Linear", {"weight": np.zeros((16, 9), np.int8)}, "x must have shape"),
        ("Linear", {"weight": np.zeros((16, 16), np.int16)}, "weight must be int8, not int16"),
        ("Linear", {"table": np.zeros(256, np.int64)}, "a table is there exactly if"),
        ("Attention", {"numerator": 5}, r"numerator must be 32768\.\.65535, not 5"),
        ("Attention", {"heads": 3}, "q must have shape"),
        ("Attention", {"head_channels": 4, "heads": 4}, "head_channels must be a multiple of 8"),
        ("LayerNorm", {"epsilon": 1 << 32}, "epsilon must be 0"),
        ("LayerNorm", {"x": "src"}, "x must have 16 bits, not 8"),
    ],
)
def test_verifier(graph, kind, changes, message):
    with pytest.raises(CompileError, match=message):
        verify(changed(graph, kind, **changes))


def test_output_that_is_never_written(graph):
    with pytest.raises(CompileError, match="output src_x is never written"):
        verify(dataclasses.replace(graph, outputs=("src_x",)))


def test_graph_as_bytes(graph):
    again = graph_from_bytes(graph_to_bytes(graph))
    assert str(again) == str(graph)
    for a, b in zip(graph.ops, again.ops, strict=True):
        for field in dataclasses.fields(a):
            x, y = getattr(a, field.name), getattr(b, field.name)
            assert np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y
    with pytest.raises(ValueError, match="not a graph"):
        graph_from_bytes(b"nothing")


@pytest.fixture(scope="module")
def images():
    """A small graph with every op of images, on both cores."""
    config = PRESETS["tiny"].replace(tap_depth=32, lut_columns=16, lut_weight_depth=64)
    grid, half = (4, 4), (2, 2)
    tensors = {
        name: Tensor(name, 1, g[0] * g[1], channels, 8, 0.5, None, g)
        for name, g, channels in [
            ("x", grid, 12), ("y", grid, 16), ("r", grid, 16), ("z", half, 16), ("j", half, 32)
        ]
    }  # fmt: skip
    rng = np.random.default_rng(0)
    weight = rng.integers(-7, 8, (16, 3, 3, 12)).astype(np.int8)
    weight[:8, :, :, ::2] = 0
    drain = dict.fromkeys(("bias", "multiplier", "shift", "narrow_shift"), np.zeros(16, np.int64))
    ops = (
        Conv("c", "x", "y", weight, 1, (1, 1), 1, 1, 4, **drain,
             lut_channels=8, lut_bits=4),
        Conv("d", "y", "r", weight[..., :1], 1, (1, 1), 1, 16, 1, **drain,
             residual="y", residual_shift=-3),
        MaxPool("p", "r", "z", (3, 3), 2, (1, 1)),
        Concat("j", ("z", "z"), "j"),
    )  # fmt: skip
    return Graph(config, tensors, ops, ("x",), ("j",))


def with_tensor(graph, name, **changes):
    tensors = graph.tensors | {name: dataclasses.replace(graph.tensors[name], **changes)}
    return dataclasses.replace(graph, tensors=tensors)


def test_good_images_pass(images):
    verify(images)
    assert str(graph_from_bytes(graph_to_bytes(images))) == str(images)


CONV = np.zeros((16, 3, 3, 12), np.int8)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("Conv", {"stride": 3}, r"Conv c: stride must be 1\.\.2 from pixel to pixel, not 3"),
        ("Conv", {"beats": 3}, r"beats must be 4\.\.8, not 3"),
        ("Conv", {"lut_channels": 0}, r"beats must be 8\.\.8, not 4"),
        ("Conv", {"lut_channels": 4}, "lut_channels must be all or a multiple of 8, not 4 of 16"),
        ("Conv", {"lut_bits": 3}, r"weights of -7\.\.7 do not fit in 3 bits"),
        ("Conv", {"lut_bits": 9}, r"lut_bits must be 1\.\.8, not 9"),
        ("Conv", {"groups": 4}, "weight must have 3 inputs, not 12"),
        ("Conv", {"groups": 5}, "5 groups divide neither 16 nor 12 channels"),
        ("Conv", {"groups": 2, "weight": CONV[..., :6]}, "the LUT core computes no groups"),
        ("Conv", {"weight": CONV.astype(np.int16)}, "weight must be int8 of four dimensions"),
        ("Conv", {"weight": CONV[:8]}, "out must have batch 1 and 8 channels"),
        ("Conv", {"weight": np.zeros((16, 6, 6, 12), np.int8)}, "36 taps are more than the 32"),
        ("Conv", {"dilation": 70}, r"taps at dy -1\.\.139 are too far away"),
        ("Conv", {"bias": np.zeros(3, np.int64)}, r"bias must have shape \(16,\)"),
        ("Conv", {"residual": "x"}, r"residual must have shape \(1, 16, 16\), not \(1, 16, 12\)"),
        ("Conv", {"residual_shift": -9}, r"residual_shift must be -8\.\.15"),
        ("MaxPool", {"padding": (3, 1)}, "every window must contain a pixel"),
        ("MaxPool", {"padding": (0, 0), "kernel": (1, 1), "dilation": 1, "stride": 2}, None),
        ("Concat", {"parts": ("z",)}, r"out must have shape \(1, 4, 16\), not \(1, 4, 32\)"),
        ("Concat", {"parts": ("z", "r")}, r"r must be int8 with batch and rows \(1, 4\)"),
    ],
)
def test_verifier_of_images(images, kind, changes, message):
    graph = changed(images, kind, **changes)
    if message is None:
        verify(graph)
        return
    with pytest.raises(CompileError, match=message):
        verify(graph)


def test_tensors_of_images(images):
    for name, changes, message in [
        ("x", {"grid": None}, "x must have a grid of 16 pixels, not None"),
        ("y", {"grid": (2, 4)}, r"y must have a grid of 16 pixels, not \(2, 4\)"),
        ("z", {"scale": 0.25}, "MaxPool p: r must have the scale of z"),
        ("j", {"scale": 0.25}, "Concat j: z must have the scale of j"),
        ("y", {"bits": 16}, "Conv d: x must have 8 bits, not 16"),
    ]:
        with pytest.raises(CompileError, match=message):
            verify(with_tensor(images, name, **changes))
    shifted = with_tensor(images, "r", channel_shift=np.arange(16))
    with pytest.raises(CompileError, match="r must have the factors of z"):
        verify(shifted)


def test_configurations_of_images(images):
    bare = dataclasses.replace(images, config=images.config.replace(tap_depth=0))
    with pytest.raises(CompileError, match="'tiny' has no windows: set tap_depth"):
        verify(bare)
    config = images.config.replace(lut_columns=0, lut_weight_depth=0)
    with pytest.raises(CompileError, match="Conv c: configuration 'tiny' has no LUT core"):
        verify(dataclasses.replace(images, config=config))


def test_accumulators_of_both_cores(images):
    graph = dataclasses.replace(images, config=images.config.replace(accumulator_bits=20))
    here = np.zeros((16, 3, 3, 12), np.int8)
    here[3] = 42
    text = "Conv c: the accumulator could overflow: sums over 108 inputs reach 580608"
    for weight in (here, np.roll(here, 8, 0)):
        with pytest.raises(CompileError, match=text):
            verify(changed(graph, "Conv", weight=weight, beats=8, lut_bits=7))


def test_residuals_have_one_factor_for_all_channels(images):
    with pytest.raises(CompileError, match="Conv d: the residual y must have no factors"):
        verify(with_tensor(images, "y", channel_shift=np.arange(16)))
