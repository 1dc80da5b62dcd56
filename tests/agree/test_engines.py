"""The ladder: reference == functional == cycle == rtl, and cycle == rtl in every cycle.

A failure names its rung: reference against functional blames the compiler's back end, functional
against rtl the hardware, cycle against rtl the timing model.
"""

import itertools

import numpy as np
import pytest

from tests.agree.graphs import random_graph, random_inputs
from tests.agree.programs import random_chain, random_program
from twillcore.compiler.pipeline import compile_graph
from twillcore.config import PRESETS
from twillcore.dram import Dram
from twillcore.sim.cycle import CycleEngine
from twillcore.sim.functional import FunctionalEngine
from twillcore.sim.reference import run_graph
from twillcore.sim.rtl import RtlEngine

MEMORIES = [
    Dram(latency, beat_cycles, outstanding)
    for latency, beat_cycles, outstanding in itertools.product((1, 7, 40, 100), (1, 2, 3), (16, 2))
]
TINY = PRESETS["tiny"]
#: Other corners of the hardware: several instruction words per beat or several bursts per group,
#: several words per column tile, parameters in pairs, packed multipliers, blocks of 16.
CONFIGS = {
    "wide_bus": TINY.replace(name="wide_bus", lanes=8, dsp_columns=64, axi_data_bits=512,
                             operand_depth=512, parameter_depth=512,
                             family="xcup"),
    "narrow_bus": TINY.replace(name="narrow_bus", axi_data_bits=32, axi_burst_beats=6,
                               queue_depth=2, family="xc7"),
    "block_16": TINY.replace(name="block_16", block=16, dsp_columns=32, lanes=2, norm_depth=512,
                             parameter_depth=512, axi_burst_beats=5, accumulator_bits=32,
                             family="ecp5"),
    "windows": TINY.replace(name="windows", tap_depth=64, lanes=6, dsp_columns=24,
                            weight_depth=2048, operand_depth=0, accumulator_bits=32),
    "convolution_only": TINY.replace(name="convolution_only", tap_depth=64, wide_depth=0,
                                     norm_depth=0, operand_depth=0, lane_depth=0,
                                     function_table=False),
}  # fmt: skip
#: Those with all that random graphs need.
GRAPH_CONFIGS = [name for name, config in CONFIGS.items() if config.operand_depth]


def assert_same_outputs(expected, result):
    assert expected.keys() == result.outputs.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(result.outputs[name], tensor, name)


def assert_same_time(image, cycle, rtl):
    for ours, theirs in zip(cycle.spans, rtl.spans, strict=True):
        assert ours == theirs, str(image.instructions()[ours.index])
    assert cycle.cycles == rtl.cycles
    assert cycle.counters == rtl.counters
    assert (cycle.bytes_read, cycle.bytes_written) == (rtl.bytes_read, rtl.bytes_written)


def memory(seed):
    return MEMORIES[seed % len(MEMORIES)]


@pytest.mark.parametrize("seed", range(100))
def test_reference_equals_functional(seed):
    """Whatever the memories held before; and no instruction reads what nobody has written."""
    graph = random_graph(seed)
    inputs = random_inputs(graph, seed)
    image = compile_graph(graph)
    expected = run_graph(graph, inputs)
    for engine in (FunctionalEngine(strict=True), FunctionalEngine(garbage=seed)):
        assert_same_outputs(expected, engine.run(image, inputs))


@pytest.mark.parametrize("name", GRAPH_CONFIGS)
def test_reference_equals_functional_for_other_configurations(name):
    for seed in range(10):
        graph = random_graph(seed, CONFIGS[name], largest=70)
        inputs = random_inputs(graph, seed)
        result = FunctionalEngine(garbage=seed).run(compile_graph(graph), inputs)
        assert_same_outputs(run_graph(graph, inputs), result)


@pytest.mark.verilator
@pytest.mark.parametrize("seed", range(60))
def test_all_engines_agree_on_graphs(seed):
    graph = random_graph(seed)
    inputs = random_inputs(graph, seed)
    image = compile_graph(graph)
    cycle = CycleEngine().run(image, inputs, dram=memory(seed))
    rtl = RtlEngine().run(image, inputs, dram=memory(seed))
    expected = run_graph(graph, inputs)
    assert_same_outputs(expected, cycle)
    assert_same_outputs(expected, rtl)
    assert_same_time(image, cycle, rtl)


@pytest.mark.verilator
@pytest.mark.parametrize("start", range(0, 240, 24))
def test_cycle_equals_rtl_on_random_programs(start):
    for seed in range(start, start + 24):
        image = random_program(seed)
        cycle = CycleEngine().run(image, {}, dram=memory(seed))
        assert_same_time(image, cycle, RtlEngine().run(image, {}, dram=memory(seed)))


@pytest.mark.verilator
@pytest.mark.slow  # a Verilator build each
@pytest.mark.parametrize("name", CONFIGS)
def test_engines_agree_for_other_configurations(name):
    config = CONFIGS[name]
    for seed in range(40):
        image = random_program(seed, config)
        cycle = CycleEngine().run(image, {}, dram=memory(seed))
        assert_same_time(image, cycle, RtlEngine().run(image, {}, dram=memory(seed)))
    for seed in range(20):
        image = random_chain(seed, config)
        cycle = CycleEngine().run(image, {}, dram=memory(seed))
        rtl = RtlEngine().run(image, {}, dram=memory(seed))
        assert_same_outputs(cycle.outputs, rtl)
        assert_same_time(image, cycle, rtl)
    if name not in GRAPH_CONFIGS:
        return
    for seed in range(10):
        graph = random_graph(seed, config, largest=70)
        inputs = random_inputs(graph, seed)
        image = compile_graph(graph)
        cycle = CycleEngine().run(image, inputs, dram=memory(seed))
        rtl = RtlEngine().run(image, inputs, dram=memory(seed))
        assert_same_outputs(run_graph(graph, inputs), rtl)
        assert_same_time(image, cycle, rtl)
