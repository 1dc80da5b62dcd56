"""The reference against arithmetic written a second time, element by element."""

import numpy as np
import pytest
import torch

from twillcore import numerics
from twillcore.compiler.graph import (
    Attention,
    Concat,
    Conv,
    Graph,
    Linear,
    MatMul,
    MaxPool,
    Tensor,
    both_directions,
)
from twillcore.config import PRESETS
from twillcore.image import MASKED_BIAS, ProgramError
from twillcore.isa import Function
from twillcore.sim.reference import exact_matmul, run_graph, window_sums

TINY = PRESETS["tiny"]


def _graph(op, tensors, inputs, outputs, masks=()):
    named = {name: Tensor(name, *rest, 1.0) for name, rest in tensors.items()}
    return Graph(TINY, named, (op,), tuple(inputs), tuple(outputs), tuple(masks))


def _linear_graph(rng, rows=3, channels=11, columns=5, bits=8, **changes):
    arguments = {
        "weight": rng.integers(-128, 128, (columns, channels)).astype(np.int8),
        "beats": 8,
        "bias": rng.integers(-9999, 9999, columns),
        "multiplier": rng.integers(1 << 12, 1 << 15, columns),
        "shift": np.full(columns, 20),
        "narrow_shift": rng.integers(0, 5, columns),
    } | changes
    tensors = {"x": (2, rows, channels, 8), "y": (2, rows, columns, bits)}
    if arguments.get("residual"):
        tensors["r"] = (2, rows, columns, 16)
    inputs = ["x", "r"] if arguments.get("residual") else ["x"]
    return _graph(Linear("l", "x", "y", **arguments), tensors, inputs, ["y"])


def test_exact_matmul_is_exact_at_the_extremes():
    a = np.full((1, 4095), -128)
    assert exact_matmul(a, a.T) == 4095 << 14


def test_linear_matches_the_contract_element_by_element():
    rng = np.random.default_rng(1)
    table = rng.integers(-30000, 30000, 256)
    graph = _linear_graph(
        rng, residual="r", residual_shift=-1, function=Function.TABLE, table=table
    )
    op = graph.ops[0]
    x = rng.integers(-128, 128, (2, 3, 11))
    r = rng.integers(-500, 500, (2, 3, 5))
    y = run_graph(graph, {"x": x, "r": r})["y"]
    for b, row, c in np.ndindex(2, 3, 5):
        acc = sum(int(x[b, row, k]) * int(op.weight[c, k]) for k in range(11))
        value = numerics.scale_accumulator(acc, op.bias[c], op.multiplier[c], op.shift[c])
        value = numerics.add_residual(value, r[b, row, c], -1)
        value = numerics.narrow(numerics.look_up(value, table), op.narrow_shift[c])
        assert y[b, row, c] == value


def test_an_int16_output_is_written_before_narrowing():
    rng = np.random.default_rng(2)
    graph = _linear_graph(rng, bits=16)
    x = rng.integers(-128, 128, (2, 3, 11))
    y = run_graph(graph, {"x": x})["y"]
    op = graph.ops[0]
    sums = x @ op.weight.T.astype(np.int64)
    assert np.abs(y).max() > 127
    assert (y == numerics.scale_accumulator(sums, op.bias, op.multiplier, op.shift)).all()


def test_matmul_multiplies_batch_items_separately():
    rng = np.random.default_rng(3)
    op = MatMul("m", "a", "b", "y", False, 1, 0, np.zeros(4, np.int64))
    graph = _graph(op, {"a": (2, 3, 5, 8), "b": (2, 5, 4, 8), "y": (2, 3, 4, 16)}, "ab", "y")
    a, b = rng.integers(-9, 9, (2, 3, 5)), rng.integers(-9, 9, (2, 5, 4))
    assert (run_graph(graph, {"a": a, "b": b})["y"] == a @ b).all()


@pytest.mark.parametrize("keys", [3, 8])
def test_attention_gives_masked_and_padding_keys_no_share(keys):
    """With one key kept its value comes back; with none, nothing."""
    numerator, lane_shift = 1 << 15, 39  # k = 1: the quotient itself
    op = Attention("a", "q", "k", "v", "y", 1, 8, 1 << 12, 20, numerator, lane_shift,
                   np.zeros(8, np.int64), mask="mask")  # fmt: skip
    tensors = {
        "q": (2, 1, 8, 8), "k": (2, keys, 8, 8), "v": (2, keys, 8, 8), "y": (2, 1, 8, 8),
        "mask": (2, 1, keys, 1),
    }  # fmt: skip
    graph = _graph(op, tensors, "qkv", "y", ["mask"])
    rng = np.random.default_rng(4)
    q, k, v = (rng.integers(-128, 128, tensors[name][:3]) for name in "qkv")
    mask = np.zeros((2, 1, keys), bool)
    mask[0, 0, 1] = True
    y = run_graph(graph, {"q": q, "k": k, "v": v, "mask": mask})["y"]
    assert (np.abs(y[0, 0] - v[0, 1]) <= 1).all()  # e counts in 127ths
    assert not y[1].any()


def test_masked_bias_saturates_any_logit():
    assert numerics.scale_accumulator(127 * 127 * 4096, MASKED_BIAS, 1 << 14, 24) == -(1 << 15)


def test_wrong_inputs_are_all_named():
    graph = _linear_graph(np.random.default_rng(5))
    with pytest.raises(ProgramError) as error:
        run_graph(graph, {"z": np.zeros(1)})
    assert str(error.value) == "missing inputs: x; unknown inputs: z"
    with pytest.raises(ProgramError, match=r"x: shape must be \(2, 3, 11\), not \(3, 11\)"):
        run_graph(graph, {"x": np.zeros((3, 11), int)})
    with pytest.raises(ProgramError, match="x: values must be integers, not float64"):
        run_graph(graph, {"x": np.zeros((2, 3, 11))})
    with pytest.raises(ProgramError, match="x: values must fit in int8"):
        run_graph(graph, {"x": np.full((2, 3, 11), 128)})


def test_every_tensor_is_returned_on_request():
    graph = _linear_graph(np.random.default_rng(6))
    x = np.zeros((2, 3, 11), int)
    assert run_graph(graph, {"x": x}, every_tensor=True).keys() == {"x", "y"}
    assert run_graph(graph, {"x": x}).keys() == {"y"}


def _conv_graph(rng, grid, kernel, stride, padding, dilation, groups, channels, columns, **changes):
    size = [
        (n + before + after - d * (k - 1) - 1) // stride + 1
        for n, k, (before, after), d in zip(
            grid, kernel, padding, both_directions(dilation), strict=True
        )
    ]
    arguments = {
        "beats": 8,
        "bias": rng.integers(-9999, 9999, columns),
        "multiplier": rng.integers(1 << 12, 1 << 15, columns),
        "shift": np.full(columns, 20),
        "narrow_shift": rng.integers(0, 5, columns),
    } | changes
    weight = rng.integers(-128, 128, (columns, *kernel, channels // groups)).astype(np.int8)
    op = Conv("c", "x", "y", weight, stride, (padding[0][0], padding[1][0]), dilation, groups,
              **arguments)  # fmt: skip
    tensors = {
        "x": Tensor("x", 2, grid[0] * grid[1], channels, 8, 1.0, None, grid),
        "y": Tensor("y", 2, size[0] * size[1], columns, 8, 1.0, None, tuple(size)),
        "r": Tensor("r", 2, size[0] * size[1], columns, 8, 1.0, None, tuple(size)),
    }
    inputs = ("x", "r") if op.residual else ("x",)
    return Graph(TINY, tensors, (op,), inputs, ("y",))


CONVOLUTIONS = {
    "3x3": ((5, 6), (3, 3), 1, ((1, 1), (1, 1)), 1, 1, 4, 6),
    "stride 2": ((8, 7), (3, 3), 2, ((1, 1), (1, 1)), 1, 1, 4, 6),
    "asymmetric padding": ((7, 9), (4, 2), 1, ((2, 1), (0, 3)), 1, 1, 3, 5),
    "unused border": ((8, 8), (2, 2), 3, ((0, 0), (0, 0)), 1, 1, 3, 5),
    "dilation": ((9, 9), (3, 3), 1, ((2, 2), (2, 2)), 2, 1, 3, 5),
    "uneven dilation": ((9, 10), (3, 2), 2, ((2, 2), (0, 1)), (2, 5), 1, 3, 5),
    "depthwise": ((6, 6), (3, 3), 2, ((1, 1), (1, 1)), 1, 6, 6, 6),
    "depth multiplier": ((6, 6), (3, 3), 1, ((1, 1), (1, 1)), 1, 3, 3, 6),
    "groups": ((6, 5), (3, 3), 1, ((1, 1), (1, 1)), 1, 2, 6, 8),
    "whole map": ((4, 4), (4, 4), 1, ((0, 0), (0, 0)), 1, 1, 5, 7),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_sums_equal_torchs_on_integers(name):
    rng = np.random.default_rng(7)
    graph = _conv_graph(rng, *CONVOLUTIONS[name])
    op = graph.ops[0]
    grid, _, stride, padding, dilation, groups, channels, _ = CONVOLUTIONS[name]
    x = rng.integers(-128, 128, (2, grid[0] * grid[1], channels))
    image = torch.from_numpy(x.reshape(2, *grid, channels)).permute(0, 3, 1, 2).double()
    image = torch.nn.functional.pad(image, (*padding[1], *padding[0]))
    weight = torch.from_numpy(op.weight).permute(0, 3, 1, 2).double()
    expected = torch.nn.functional.conv2d(image, weight, None, stride, 0, dilation, groups)
    sums = window_sums(graph, op, x)
    assert (sums == expected.flatten(2).transpose(1, 2).numpy()).all()


def test_convolution_matches_the_contract_with_an_int8_residual_and_relu():
    rng = np.random.default_rng(8)
    graph = _conv_graph(
        rng, *CONVOLUTIONS["3x3"], residual="r", residual_shift=-3, function=Function.RELU
    )
    op = graph.ops[0]
    x, r = rng.integers(-128, 128, (2, 30, 4)), rng.integers(-128, 128, (2, 30, 6))
    y = run_graph(graph, {"x": x, "r": r})["y"]
    for b, row, column, n in np.ndindex(2, 5, 6, 6):
        acc = sum(
            int(x[b, (row + i - 1) * 6 + column + j - 1, c]) * int(op.weight[n, i, j, c])
            for i in range(3) for j in range(3) for c in range(4)
            if 0 <= row + i - 1 < 5 and 0 <= column + j - 1 < 6
        )  # fmt: skip
        value = numerics.scale_accumulator(acc, op.bias[n], op.multiplier[n], op.shift[n])
        value = numerics.relu(numerics.add_residual(value, r[b, row * 6 + column, n], -3))
        assert y[b, row * 6 + column, n] == numerics.narrow(value, op.narrow_shift[n])


def test_convolution_is_exact_beyond_the_range_of_float32():
    weight = np.full((1, 3, 3, 512), -128, np.int8)
    weight[0, 0, 0, 0] = 1
    drain = dict.fromkeys(("bias", "multiplier", "shift", "narrow_shift"), np.zeros(1, int))
    op = Conv("c", "x", "y", weight, 1, (1, 1), 1, 1, 8, **drain)
    tensors = {"x": Tensor("x", 1, 9, 512, 8, 1.0, None, (3, 3)),
               "y": Tensor("y", 1, 9, 1, 8, 1.0, None, (3, 3))}  # fmt: skip
    x = np.full((1, 9, 512), -128)
    x[0, 0, 0] = -127
    sums = window_sums(Graph(TINY, tensors, (op,), ("x",), ("y",)), op, x)
    assert sums[0, 4, 0] == (9 * 512 - 1) * 128 * 128 - 127


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [((3, 3), 2, 1), ((2, 3), 1, 1), ((2, 2), 2, 0)]
)
def test_max_pooling_ignores_what_is_outside(kernel, stride, padding):
    x = np.random.default_rng(9).integers(-128, -100, (2, 42, 5))
    image = torch.from_numpy(x.reshape(2, 6, 7, 5)).permute(0, 3, 1, 2).double()
    expected = torch.nn.functional.max_pool2d(image, kernel, stride, padding)
    size = tuple(expected.shape[2:])
    op = MaxPool("p", "x", "y", kernel, stride, (padding, padding))
    tensors = {"x": Tensor("x", 2, 42, 5, 8, 1.0, None, (6, 7)),
               "y": Tensor("y", 2, size[0] * size[1], 5, 8, 1.0, None, size)}  # fmt: skip
    y = run_graph(Graph(TINY, tensors, (op,), ("x",), ("y",)), {"x": x})["y"]
    assert (y == expected.flatten(2).transpose(1, 2).numpy()).all()


def test_every_part_of_a_concat_begins_with_a_block():
    op = Concat("c", ("a", "b", "a"), "y")
    graph = _graph(op, {"a": (2, 3, 2, 8), "b": (2, 3, 9, 8), "y": (2, 3, 26, 8)}, "ab", "y")
    a, b = np.arange(12).reshape(2, 3, 2), -np.arange(54).reshape(2, 3, 9)
    y = run_graph(graph, {"a": a, "b": b})["y"]
    gap = np.zeros((2, 3, 7), int)
    expected = np.concatenate([a, gap[..., :6], b, gap, a], -1)
    assert y.shape == (2, 3, 26)
    assert (y == expected).all()
