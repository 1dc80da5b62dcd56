"""The reference against arithmetic written a second time, element by element."""

import numpy as np
import pytest

from twillcore import numerics
from twillcore.compiler.graph import Attention, Graph, Linear, MatMul, Tensor
from twillcore.config import PRESETS
from twillcore.image import MASKED_BIAS, ProgramError
from twillcore.isa import Function
from twillcore.sim.reference import exact_matmul, run_graph

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
