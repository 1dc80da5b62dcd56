"""Compiled programs on the functional engine equal the quantised graph."""

import dataclasses
import importlib.util
import pathlib

import numpy as np
import pytest

from twillcore.compiler.errors import CompileError
from twillcore.compiler.gemm_graph import gemm_graph, ideal_cycles
from twillcore.compiler.pipeline import compile_graph
from twillcore.config import PRESETS
from twillcore.image import Image
from twillcore.isa import Opcode
from twillcore.sim.functional import FunctionalEngine
from twillcore.sim.reference import run_graph

TINY, U256 = PRESETS["tiny"], PRESETS["u256"]
#: Little of everything, so that tensors are streamed and rows and columns are split.
CRAMPED = TINY.replace(
    name="cramped", activation_depth=128, wide_depth=64, weight_depth=64, parameter_depth=64,
    operand_depth=192, norm_depth=64, lane_depth=8, queue_depth=2,
)  # fmt: skip


def _graphs():
    path = pathlib.Path(__file__).parents[1] / "agree" / "graphs.py"
    spec = importlib.util.spec_from_file_location("agree_graphs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


graphs = _graphs()


def check(graph, inputs, seed=0):
    """Compile, run from random memories, compare; return the image."""
    image = compile_graph(graph)
    result = FunctionalEngine(garbage=seed).run(image, inputs)
    for name, expected in run_graph(graph, inputs).items():
        np.testing.assert_array_equal(result.outputs[name], expected, err_msg=f"{name}\n{graph}")
    return image


@pytest.mark.parametrize("config", [TINY, U256, CRAMPED], ids=lambda config: config.name)
@pytest.mark.parametrize("first", range(0, 100, 20))
def test_random_graphs_equal_the_reference(config, first):
    for seed in range(first, first + 20):
        graph = graphs.random_graph(seed, config)
        check(graph, graphs.random_inputs(graph, seed), seed)


@pytest.mark.parametrize("kind", graphs.KINDS)
def test_graphs_of_one_kind_equal_the_reference(kind):
    for seed in range(1000, 1008):
        graph = graphs.random_graph(seed, TINY, (kind,), largest=60)
        check(graph, graphs.random_inputs(graph, seed), seed)


@pytest.mark.parametrize("beats", range(1, 9))
@pytest.mark.parametrize("shape", [(17, 100, 33), (1, 1, 1), (40, 64, 24), (5, 700, 9)])
def test_gemm_of_any_sparsity_and_size(shape, beats):
    for config in (TINY, CRAMPED):
        graph, inputs = gemm_graph(*shape, config, beats, seed=beats)
        check(graph, inputs)


def test_gemm_larger_than_every_memory():
    graph, inputs = gemm_graph(500, 300, 200, TINY, 4)
    assert graph.tensors["x"].channels * 500 > TINY.activation_depth * TINY.word_bytes
    check(graph, inputs)


def test_gemm_instructions_cover_exactly_the_ideal_cycles():
    graph, inputs = gemm_graph(70, 90, 130, U256, 3)
    image = check(graph, inputs)
    beats = sum(
        i["row_tiles"] * i["column_tiles"] * i["blocks"] * i["beats"]
        for i in image.instructions()
        if i.opcode == Opcode.GEMM
    )
    assert beats == ideal_cycles(70, 90, 130, U256, 3)


def test_program_survives_its_file():
    graph, inputs = gemm_graph(9, 10, 11, TINY, 2)
    image = compile_graph(graph, host={"vocabulary": b"abc"}, notes={"source": "test"})
    again = Image.from_bytes(image.to_bytes())
    assert again == dataclasses.replace(image, notes=again.notes)
    result = FunctionalEngine().run(again, inputs)
    np.testing.assert_array_equal(result.outputs["y"], run_graph(graph, inputs)["y"])


def test_layer_that_fits_no_tiling_names_the_parameter_to_raise():
    config = TINY.replace(activation_depth=16)
    graph, _ = gemm_graph(8, 400, 8, config, 8)
    with pytest.raises(CompileError, match=r"gemm 8 400 8: .* raise activation_depth"):
        compile_graph(graph)


def test_sums_beyond_the_accumulator_are_refused():
    config = TINY.replace(accumulator_bits=20)
    graph, _ = gemm_graph(4, 400, 4, config, 8)
    with pytest.raises(CompileError, match="raise accumulator_bits"):
        compile_graph(graph)


def test_gemm_refuses_empty_dimensions():
    with pytest.raises(CompileError, match="at least 1"):
        gemm_graph(0, 4, 4, TINY, 8)
    with pytest.raises(CompileError, match=r"beats must be 1\.\.8"):
        gemm_graph(4, 4, 4, TINY, 9)
