"""Convolutional networks on both cores: functional, cycle and RTL agree."""

import dataclasses

import pytest

from tests.agree.maps import CNN, random_map_graph, random_map_inputs, residual_block
from tests.agree.test_engines import assert_same_outputs, assert_same_time, memory
from twillcore.compiler.errors import CompileError
from twillcore.compiler.pipeline import compile_graph
from twillcore.config import PRESETS
from twillcore.sim.cycle import CycleEngine
from twillcore.sim.reference import run_graph
from twillcore.sim.rtl import RtlEngine

#: Half a row tile of an odd number of lanes, several words per column tile, no vector engine.
LANES_14 = dataclasses.replace(
    CNN, name="cnn_14", lanes=14, dsp_columns=24, lut_columns=16, operand_depth=0, wide_depth=0,
    norm_depth=0, lane_depth=0, function_table=False,
)  # fmt: skip


def agree(seed, config, **shape):
    graph = random_map_graph(seed, config, **shape)
    try:
        image = compile_graph(graph)
    except CompileError:  # maps of pitches that do not fit each other
        return False
    inputs = random_map_inputs(graph, seed)
    cycle = CycleEngine().run(image, inputs, dram=memory(seed))
    rtl = RtlEngine().run(image, inputs, dram=memory(seed))
    expected = run_graph(graph, inputs)
    assert_same_outputs(expected, cycle)
    assert_same_outputs(expected, rtl)
    assert_same_time(image, cycle, rtl)
    return True


@pytest.mark.verilator
@pytest.mark.parametrize("start", range(0, 48, 8))
def test_all_engines_agree_on_maps(start):
    assert sum(agree(seed, CNN) for seed in range(start, start + 8)) >= 6


@pytest.mark.verilator
def test_all_engines_agree_on_other_strides():
    shape = {"ops": 3, "largest": 20, "kinds": ("uneven", "every", "conv")}
    assert sum(agree(seed, CNN, **shape) for seed in range(12)) >= 10


@pytest.mark.verilator
def test_all_engines_agree_on_concatenations_with_gaps():
    shape = {"ops": 4, "kinds": ("concat", "conv", "map")}
    assert sum(agree(seed, CNN, **shape) for seed in range(100, 108)) >= 7


@pytest.mark.verilator
@pytest.mark.slow  # a Verilator build
def test_all_engines_agree_on_14_lanes():
    assert sum(agree(seed, LANES_14) for seed in range(20)) >= 16


@pytest.mark.verilator
@pytest.mark.slow  # builds the largest machine
def test_a_residual_block_of_resnet_on_z7020():
    config = PRESETS["z7020"]
    graph = residual_block(config, 28, 128, 4, 32)
    image = compile_graph(graph)
    inputs = random_map_inputs(graph, 0)
    cycle = CycleEngine().run(image, inputs, dram=memory(0))
    rtl = RtlEngine().run(image, inputs, dram=memory(0))
    expected = run_graph(graph, inputs)
    assert expected["out"].std() > 20
    assert_same_outputs(expected, rtl)
    assert_same_time(image, cycle, rtl)
    for engine in ("gemm", "lut"):
        assert cycle.counters[engine]["busy"] > 0.8 * cycle.cycles
