"""Convolutional networks on both cores: functional, cycle and RTL agree."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.agree.maps import CNN, random_map_graph, random_map_inputs, residual_block
from tests.agree.test_engines import assert_same_outputs, assert_same_time, memory
from twillcore.compiler.errors import CompileError
from twillcore.compiler.front import run_front
from twillcore.compiler.host import chip_arguments
from twillcore.compiler.pipeline import compile_graph
from twillcore.compiler.shares import LutShare, Shares
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


class Mixed(nn.Module):
    """Padding, joined channels that fill no blocks, a stride of 3, adaptive max pooling."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 3, (2, 1))
        self.c, self.d = nn.Conv2d(11, 7, 2, 3), nn.Linear(7, 4)

    def forward(self, x):
        x = functional.pad(torch.relu(self.a(x)), (0, 2, 1, 0))
        x = functional.pad(torch.cat([functional.max_pool2d(x, (3, 3), (2, 1)), self.b(x)], 1),
                           (1, 0, 0, 1))  # fmt: skip
        return self.d(functional.adaptive_max_pool2d(self.c(x), 1).flatten(1))


@pytest.mark.verilator
def test_all_engines_agree_on_a_network_with_all_of_it():
    torch.manual_seed(0)
    x = (torch.randn(1, 3, 15, 15),)
    front = run_front(Mixed().eval(), x, CNN, [x], Shares({}, LutShare(4)))
    image = compile_graph(front.graph)
    integers, _ = chip_arguments(front.interface, front.programs.prefix(*x))
    cycle = CycleEngine().run(image, integers, dram=memory(0))
    rtl = RtlEngine().run(image, integers, dram=memory(0))
    expected = run_graph(front.graph, integers)
    assert_same_outputs(expected, rtl)
    assert_same_time(image, cycle, rtl)


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
