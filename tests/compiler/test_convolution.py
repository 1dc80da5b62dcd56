"""Compiled feature maps on the functional engine equal the quantised graph."""

import dataclasses
import itertools

import numpy as np
import pytest

from tests.agree import maps
from twillcore.compiler.allocate import allocate
from twillcore.compiler.column_tiles import layer_runs
from twillcore.compiler.dependences import derive_tokens, verify_contents, verify_order
from twillcore.compiler.emit import emit
from twillcore.compiler.errors import CompileError
from twillcore.compiler.graph import Concat, Conv, Graph, Linear, MaxPool, Tensor
from twillcore.compiler.lowering import Lowering, Tuning
from twillcore.compiler.pipeline import compile_graph
from twillcore.compiler.pitches import choose_pitches
from twillcore.compiler.schedule import schedule
from twillcore.compiler.tap_tables import geometry
from twillcore.compiler.tile import Pairing, tile
from twillcore.config import PRESETS
from twillcore.isa import Engine, Function, Memory, Opcode
from twillcore.sim.functional import FunctionalEngine
from twillcore.sim.reference import run_graph

CNN = maps.CNN
#: Little of everything: maps live in DRAM, weights come in parts.
BANDS = CNN.replace(name="bands", activation_depth=80, wide_depth=64, weight_depth=192,
                    lut_weight_depth=128, parameter_depth=64, queue_depth=2)  # fmt: skip
LANES_14 = CNN.replace(name="14 lanes", lanes=14, dsp_columns=24, lut_columns=16, operand_depth=0)
DSP_ONLY = CNN.replace(name="DSP core only", lanes=6, dsp_columns=16, lut_columns=0,
                       lut_weight_depth=0, wide_depth=0, norm_depth=0, lane_depth=0,
                       operand_depth=0)  # fmt: skip
BLOCK_16 = CNN.replace(name="block 16", block=16, dsp_columns=32, lut_columns=16)


def check(graph, seed=0, strict=False):
    """Compile, run, compare; return the instructions."""
    image = compile_graph(graph)
    inputs = maps.random_map_inputs(graph, seed)
    result = FunctionalEngine(garbage=seed, strict=strict).run(image, inputs)
    for name, expected in run_graph(graph, inputs).items():
        np.testing.assert_array_equal(result.outputs[name], expected, err_msg=f"{name}\n{graph}")
        assert expected.std() > 0 or expected.size < 20
    return image.instructions()


@pytest.mark.parametrize(
    "config", [CNN, BANDS, LANES_14, DSP_ONLY, BLOCK_16], ids=lambda config: config.name
)
@pytest.mark.parametrize("first", [0, 40])
def test_random_maps_equal_the_reference(config, first):
    refused = 0
    for seed in range(first, first + 40):
        graph = maps.random_map_graph(seed, config)
        try:
            image = compile_graph(graph)
        except CompileError:
            refused += 1
            continue
        inputs = maps.random_map_inputs(graph, seed)
        # Strict: no lane that counts reads what is not there, not even one whose result is junk.
        result = FunctionalEngine(garbage=seed, strict=True).run(image, inputs)
        for name, expected in run_graph(graph, inputs).items():
            np.testing.assert_array_equal(result.outputs[name], expected, err_msg=f"{seed} {name}")
    assert refused <= 8  # most of them for want of weight memory, in bands


# Hand-made layers


class Net:
    """A graph put together layer by layer."""

    def __init__(self, config, grid, channels, batch=1):
        self.config, self.tensors, self.ops = config, {}, []
        self.rng = np.random.default_rng(channels)
        self.batch = batch
        self.tensor("x", grid, channels)

    def tensor(self, name, grid, channels, bits=8):
        rows = grid[0] * grid[1]
        self.tensors[name] = Tensor(name, self.batch, rows, channels, bits, 1.0, grid=grid)
        return name

    def conv(self, x, n, kernel=3, stride=1, groups=1, beats=8, lut=0, residual=None, padding=None,
             out=None):  # fmt: skip
        source = self.tensors[x]
        padding = kernel // 2 if padding is None else padding
        grid = tuple((size + 2 * padding - kernel) // stride + 1 for size in source.grid)
        shape = n, kernel, kernel, source.channels // groups
        weight = maps.random_weights(self.rng, shape, self.config.block, beats, lut, 4)
        name = self.tensor(out or f"t{len(self.tensors)}", grid, n)
        spread = 74.0 * 74.0 * np.sqrt(weight[0].size * min(1, beats / 8))
        shift = int(np.log2(spread / 700) + 14)
        self.ops.append(
            Conv(f"conv.{len(self.ops)}", x, name, weight, stride, (padding, padding), 1, groups,
                 beats, bias=np.zeros(n, int), multiplier=np.full(n, 1 << 14),
                 shift=np.full(n, shift), narrow_shift=np.full(n, 4), residual=residual,
                 residual_shift=-1 if residual else 0, function=Function.RELU, lut_channels=lut,
                 lut_bits=4 if lut else 0, help=True)
        )  # fmt: skip
        return name

    def graph(self, *outputs):
        return Graph(self.config, self.tensors, tuple(self.ops), ("x",), outputs)


def gemms(instructions, opcode=Opcode.GEMM):
    return [i for i in instructions if i.opcode == opcode]


def test_cores_wait_for_results_of_each_other_and_for_nothing_else():
    net = Net(CNN, (6, 8), 16)
    y = net.conv(net.conv("x", 16, lut=8), 16, lut=8)
    graph = net.graph(y)
    assert {i.engine for i in check(graph)} >= {Engine.GEMM, Engine.LUT}
    image = compile_graph(graph)
    other = {Engine.GEMM: Engine.LUT, Engine.LUT: Engine.GEMM}
    waits = {
        (layer, i.engine)
        for layer, i in zip(image.instruction_layers, image.instructions(), strict=True)
        if i.engine in other and i.wait >> other[i.engine] & 1
    }
    assert waits == {(1, Engine.GEMM), (1, Engine.LUT)}


def test_bands_have_windows_of_their_own_and_weights_stay():
    config = CNN.replace(activation_depth=96)
    net = Net(config, (24, 8), 16)
    y = net.conv(net.conv("x", 16), 8)
    instructions = check(net.graph(y))
    assert len({i["y"] for i in instructions if i.opcode == Opcode.WINDOW}) > 4
    loads = [i for i in instructions if i.opcode == Opcode.LOAD]
    weights = sum(i["count"] for i in loads if i["memory"] == Memory.WEIGHT)
    assert weights == 9 * 2 * 8 * 3  # each row once


def test_weights_that_do_not_stay_pass_the_bands_or_the_other_way_round():
    config = CNN.replace(activation_depth=96, weight_depth=256)
    net = Net(config, (24, 8), 16)
    check(net.graph(net.conv("x", 40)))


@pytest.mark.parametrize("depth", [400, 320, 128])
def test_column_tiles_that_do_not_fit_twice_come_in_parts(depth):
    """288 weight rows per tile, three row tiles: the sums wait in the accumulators."""
    net = Net(CNN.replace(weight_depth=depth, lut_weight_depth=depth), (3, 4), 32)
    y = net.conv("x", 32, lut=16)
    instructions = check(net.graph(y))
    for opcode in (Opcode.GEMM, Opcode.LUT_GEMM):
        mine = gemms(instructions, opcode)
        rows = 288 if opcode == Opcode.GEMM else 144
        split = rows > depth // 2
        assert any(i["hold"] for i in mine) == split
    memory = Memory.WEIGHT
    loads = [i for i in instructions if i.opcode == Opcode.LOAD and i["memory"] == memory]
    rows = sum(i["count"] for i in loads)
    # 400 rows are room for a tile and a part more, 320 for some parts between row tiles.
    assert {400: rows == 576, 320: 576 < rows < 3 * 576, 128: rows == 3 * 576}[depth]


def test_depthwise_convolution_takes_one_beat_per_tap():
    net = Net(LANES_14, (14, 14), 40)
    y = net.conv("x", 40, groups=40)
    mine = gemms(check(net.graph(y)))
    assert {i["beats"] for i in mine} == {1}
    words = sum((i["words"] or 3) * i["column_tiles"] * i["row_tiles"] for i in mine)
    assert words == 5 * 14
    assert all(i["blocks"] == (i["words"] or 3) for i in mine)


@pytest.mark.parametrize(
    ("groups", "inputs", "outputs"),
    [(4, 8, 8), (2, 16, 8), (3, 8, 24), (4, 4, 4), (8, 2, 2), (2, 6, 4)],
)
def test_groups(groups, inputs, outputs):  # fmt: skip
    net = Net(CNN, (4, 4), groups * inputs)
    y = net.conv("x", groups * outputs, groups=groups)
    mine = gemms(check(net.graph(y)))
    beats = sum(i["column_tiles"] * i["blocks"] * i["beats"] for i in mine) // len(
        {i["a"] for i in mine if not i["a_column_stride"]} or {0}
    )
    if inputs % 8 == 0:  # no products with other groups
        total = sum(i["column_tiles"] * i["blocks"] * i["row_tiles"] for i in mine)
        assert total == groups * -(-outputs // 8) * inputs // 8 * 4
    if inputs in (2, 4):  # a block holds whole groups: as many beats as a group has channels
        assert {i["beats"] for i in mine} == {inputs}
    assert beats


def test_a_residual_that_nobody_else_reads_is_overwritten():
    net = Net(CNN, (4, 4), 16)
    a = net.conv("x", 16)
    b = net.conv(a, 16)
    c = net.conv(b, 16, residual=a)
    d = net.conv(c, 8)
    graph = net.graph(d)
    plan = tile(graph, frozenset(), {}, Tuning())
    names = {b.tensor for step in plan.steps for b in step.buffers() if b.tensor}
    assert names == {"x", a, b, d}  # c lies over a
    assert any(i["residual_narrow"] for i in gemms(check(graph)))
    kept = dataclasses.replace(graph, outputs=(d, a))
    assert c in {
        b.tensor for step in tile(kept, frozenset(), {}, Tuning()).steps for b in step.buffers()
    }
    check(kept)


def test_a_concatenation_of_layers_costs_nothing():
    net = Net(CNN, (4, 6), 16)
    a, b = net.conv("x", 8), net.conv("x", 13)
    net.ops.append(Concat("concat", (a, b), net.tensor("both", (4, 6), 21)))
    graph = net.graph(net.conv("both", 8))
    assert len(gemms(check(graph))) == 2 * 3  # of the convolutions: two chunks of them each


def test_what_is_concatenated_and_lies_elsewhere_is_copied():
    net = Net(CNN, (4, 6), 16)
    a = net.conv("x", 8)
    net.ops.append(Concat("concat", (a, "x", a), net.tensor("both", (4, 6), 32)))
    check(net.graph(net.conv("both", 8), a))
    net.config = BANDS.replace(weight_depth=512)
    check(net.graph("both"))


def test_pooling_ignores_padding():
    net = Net(CNN, (9, 8), 16)
    out = net.tensor("y", (5, 4), 16)
    net.ops.append(MaxPool("pool", "x", out, (3, 3), 2, (1, 1)))
    instructions = check(net.graph(out))
    assert any(i["pool"] for i in gemms(instructions))


def test_a_linear_layer_on_two_cores():
    rng = np.random.default_rng(5)
    weight = maps.random_weights(rng, (40, 30), 8, 8, 16, 4)
    tensors = [Tensor("x", 2, 9, 30, 8, 1.0), Tensor("y", 2, 9, 40, 8, 1.0)]
    op = Linear("fc", "x", "y", weight, 8, bias=np.zeros(40, int),
                multiplier=np.full(40, 1 << 14), shift=np.full(40, 19),
                narrow_shift=np.full(40, 4), lut_channels=16, lut_bits=4)  # fmt: skip
    graph = Graph(CNN, {t.name: t for t in tensors}, (op,), ("x",), ("y",))
    instructions = check(graph)
    assert sum(i["column_tiles"] for i in gemms(instructions, Opcode.LUT_GEMM)) % 2 == 0


# Geometry


@pytest.mark.parametrize(
    ("lanes", "widths", "pitches"),
    [
        (14, (224, 112, 56, 28, 14, 7), (224, 112, 56, 28, 14, 7)),
        (16, (224, 112, 56, 28, 14, 7), (224, 112, 64, 32, 16, 8)),
        (4, (30, 15, 8, 4, 2), (30, 16, 8, 4, 2)),
        (16, (32, 16, 8), (32, 16, 8)),
    ],
)
def test_pitches_of_halving_maps(lanes, widths, pitches):
    net = Net(LANES_14.replace(lanes=lanes), (widths[0], widths[0]), 8)
    x = "x"
    for width in widths[1:]:
        x = net.conv(x, 8, stride=2)
        assert net.tensors[x].grid == (width, width)
    assert tuple(choose_pitches(net.graph(x)).values()) == pitches


def test_every_geometry_of_stride_2_is_exercised():
    """Output lines of whole row tiles, of a half, as long as input lines, and single ones."""
    seen = set()
    for width, height in [(16, 6), (8, 6), (4, 7), (12, 4), (6, 4), (9, 1), (2, 6)]:
        net = Net(CNN, (height, width), 8)
        graph = net.graph(net.conv("x", 8, stride=2))
        check(graph)
        g = geometry(Lowering(graph, frozenset(), {}, Tuning()), graph.ops[0])
        seen.add((g.tile_step, g.line_tiles > 0, g.out_height == 1, g.second == CNN.lanes))
    assert len(seen) == 4


REFUSED = {
    "configuration 'tiny' has no windows, which a convolution needs: set tap_depth": (
        PRESETS["tiny"], {},
    ),
    "conv.0: 81 taps, more than tap_depth=64; raise it": (CNN, {"kernel": 9}),
    "conv.0: windows have a stride of 1 or 2, not 3": (CNN, {"stride": 3}),
    "configuration '.*' has no LUT core": (DSP_ONLY, {"lut": 8}),
    "the 4 outputs of the DSP core must be a multiple of 8: lut_channels may be 12 or 12": (
        CNN, {"n": 12, "lut": 8},
    ),
    "a column tile has 144 weight rows, more than 96, and a row tile begins inside a line;"
    " raise weight_depth": (CNN.replace(weight_depth=96), {"width": 10}),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message):
    config, arguments = REFUSED[message]
    arguments = {"n": 8, "width": 8} | arguments
    net = Net(config, (10, arguments.pop("width")), 16)
    with pytest.raises(CompileError, match=message):
        compile_graph(net.graph(net.conv("x", **arguments)))


def test_a_concatenation_of_parts_that_fill_no_words_costs_nothing_either():
    net = Net(CNN, (4, 4), 16)
    a, b = net.conv("x", 12), net.conv("x", 9)
    net.ops.append(Concat("concat", (a, b), net.tensor("both", (4, 4), 16 + 9)))
    graph = net.graph(net.conv("both", 8))
    image = compile_graph(graph)
    check(graph, strict=True)
    layers = [image.layers[number].name for number in image.instruction_layers]
    assert {"conv.0", "conv.1"} < set(layers)
    assert "concat" not in layers


def test_rows_that_are_no_pixels_have_no_pitch():
    net = Net(CNN, (4, 5), 8)
    y = net.conv("x", 8, stride=2, padding=1)
    op = net.ops.pop()
    net.tensors[y] = dataclasses.replace(net.tensors[y], grid=(2, 3))
    net.ops.append(op)
    tensor = Tensor("rows", 1, 6, 8, 8, 1.0)
    net.tensors["rows"] = tensor
    ones = np.ones(8, int)
    net.ops.append(Linear("fc", y, "rows", np.eye(8, dtype=np.int8), 1, bias=0 * ones,
                          multiplier=ones, shift=0 * ones, narrow_shift=0 * ones))  # fmt: skip
    with pytest.raises(CompileError, match=r"no pitches of the feature maps fit conv.0 on 4 lanes"):
        compile_graph(net.graph("rows"))


def test_runs_cover_every_output_once():
    rng = np.random.default_rng(1)
    for groups, inputs, outputs in [(1, 20, 50), (48, 1, 1), (3, 16, 24), (2, 5, 24)]:
        n = groups * outputs
        weight = rng.integers(-8, 8, (n, 1, 1, inputs)).astype(np.int8)
        lut = n // 2 // 8 * 8 + n % 8
        drain = dict.fromkeys(("bias", "multiplier", "shift", "narrow_shift"), np.zeros(n, int))
        op = Conv("c", "x", "y", weight, 1, (0, 0), 1, groups, 8, **drain, lut_channels=lut,
                  lut_bits=4)  # fmt: skip
        runs = layer_runs(op, LANES_14)
        words = [run.word + t * run.words + w for run in runs for t in range(run.tiles)
                 for w in range(run.words)]  # fmt: skip
        assert words == list(range(-(-n // 8)))


# Cores that help each other


@pytest.mark.parametrize(
    ("beats", "lut", "helper", "bits"),
    [(8, 8, Opcode.LUT_GEMM, {4, 8}), (2, 16, Opcode.GEMM, {2, 8})],
    ids=["LUT core", "DSP core"],
)
@pytest.mark.parametrize("kernel", [1, 3])
def test_the_core_that_would_idle_computes_rows_of_the_other_one(beats, lut, helper, bits, kernel):
    net = Net(CNN.replace(weight_depth=1024, lut_weight_depth=1024), (8, 8), 16)
    graph = net.graph(net.conv("x", 24, kernel, beats=beats, lut=lut))
    instructions = check(graph)
    assert {i["beats"] for i in gemms(instructions, helper)} == bits
    rows = {  # row tiles times words, by core and beats
        (i.opcode, i["beats"]): 0 for i in instructions if "row_tiles" in i.operands
    }
    for i in instructions:
        if i.opcode in (Opcode.GEMM, Opcode.LUT_GEMM):
            rows[i.opcode, i["beats"]] += i["row_tiles"] * i["column_tiles"]
    assert sum(rows.values()) == 16 * 3
    (layer,) = compile_graph(graph).layers
    share = rows[helper, 8] / 16 / 2
    assert 0 < share < 0.5
    whole = 64 * 8 * kernel * kernel * 16  # of a word of outputs
    if helper == Opcode.LUT_GEMM:
        assert layer.lut_macs == whole + round(2 * whole * share)
        assert layer.lut_work == whole * 4 + round(2 * whole * share) * 8
        assert layer.useful_macs == 2 * whole - round(2 * whole * share)
    else:
        assert layer.lut_macs == 2 * whole - round(2 * whole * share)
        assert layer.useful_macs == whole // 4 + round(2 * whole * share)


def test_no_core_helps_where_its_weights_would_not_fit_twice():
    net = Net(CNN.replace(weight_depth=1024, lut_weight_depth=256), (8, 8), 16)
    instructions = check(net.graph(net.conv("x", 24, lut=8)))
    assert {i["beats"] for i in gemms(instructions, Opcode.LUT_GEMM)} == {4}


def test_blocks_of_a_tap_that_are_zero_for_all_outputs_are_no_work():
    net = Net(CNN, (6, 6), 24)
    y = net.conv("x", 16, lut=8)
    weight = net.ops[0].weight
    weight[:, 0, :, 8:16] = weight[:, 2, 2, :] = 0
    instructions = check(net.graph(y))
    for opcode in (Opcode.WINDOW, Opcode.LUT_WINDOW):
        assert {i["taps"] for i in instructions if i.opcode == opcode} == {9 * 3 - 3 - 3}
    assert {i["blocks"] for i in instructions if i.opcode == Opcode.LUT_GEMM} == {1}


# Layers that go together


#: A wide bus, so that layers are bound by different things.
PAIRS = CNN.replace(name="pairs", activation_depth=256, weight_depth=1024, lut_weight_depth=1024,
                    parameter_depth=512, queue_depth=8)  # fmt: skip


def inverted_residual(config=PAIRS, side=16):
    net = Net(config, (side, side), 16)
    wide = net.conv("x", 48, 1)
    deep = net.conv(wide, 48, groups=48)
    return net.graph(net.conv(deep, 16, 1))


def turns(layers, engines):
    """Return how often two layers take turns on the DSP core."""
    mine = [layer for layer, engine in zip(layers, engines, strict=False) if engine == Engine.GEMM]
    return sum(a != b for a, b in itertools.pairwise(mine))


def test_layers_take_turns_where_that_pays():
    graph = inverted_residual()
    engines = [i.engine for i in check(graph)]
    assert turns(compile_graph(graph).instruction_layers, engines) > 8
    graph = inverted_residual(PAIRS.replace(activation_depth=512))  # where all maps are on chip
    engines = [i.engine for i in check(graph)]
    assert turns(compile_graph(graph).instruction_layers, engines) == 2


@pytest.mark.parametrize("pairing", Pairing)
@pytest.mark.parametrize("number", [0, 1])
def test_every_way_of_going_together_is_valid(pairing, number):
    graph = inverted_residual(PAIRS.replace(activation_depth=512))
    streamed = frozenset(["t1", "t2", "t3"])
    plan = tile(graph, streamed, {}, Tuning(), {number: pairing})
    placement = allocate(plan)
    steps = schedule(plan, placement)
    tokens = derive_tokens(steps, graph.config, placement)
    verify_order(steps, tokens, graph.config, placement)
    verify_contents(steps, placement)
    image = emit(plan, steps, placement, tokens, None, {})
    inputs = maps.random_map_inputs(graph, 0)
    result = FunctionalEngine(garbage=1, strict=True).run(image, inputs)
    for name, expected in run_graph(graph, inputs).items():
        np.testing.assert_array_equal(result.outputs[name], expected)
    assert turns([s.layer for s in steps], [s.engine for s in steps]) > 3
    middle = any(s.layer == number and s.opcode == Opcode.STORE for s in steps)
    assert middle == (pairing == Pairing.INTERLEAVED)


@pytest.mark.parametrize("beats", [2, 4, 8])
@pytest.mark.parametrize("lut", range(8, 64, 8))
def test_help_with_column_tiles_of_other_widths(beats, lut):
    config = LANES_14.replace(weight_depth=2048, lut_weight_depth=2048, activation_depth=1536,
                              axi_data_bits=128)  # fmt: skip
    net = Net(config, (28, 14), 192)
    y = net.conv("x", 64, 1, beats=beats, lut=lut)
    bias = net.rng.integers(-40000, 40000, 64)  # no two tiles have the same parameters
    net.ops[0] = dataclasses.replace(net.ops[0], bias=bias)
    check(net.graph(y))
