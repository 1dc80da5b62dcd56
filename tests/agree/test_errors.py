"""A faulty instruction stops every engine for the same reason, at the same place."""

import pytest

from tests.agree.programs import DATA, TINY, Program
from twillcore.isa import Memory, MoveMode, Opcode, WeightFormat
from twillcore.sim.cycle import CycleEngine
from twillcore.sim.functional import FunctionalEngine
from twillcore.sim.machine_error import MachineError
from twillcore.sim.rtl import RtlEngine

GEMM = {"row_tiles": 1, "column_tiles": 1, "blocks": 1, "beats": 8}
LOAD = {"memory": Memory.ACTIVATION, "dram": DATA, "count": 1, "runs": 1}
WEIGHTS = LOAD | {"memory": Memory.WEIGHT, "count": 12}
MOVE = {"row_tiles": 1, "blocks": 1}
SOFTMAX = {"row_tiles": 1, "words": 1, "numerator": 1 << 15, "shift": 30}
NORM = {"row_tiles": 1, "words": 1, "channels": 8, "wide": 1}
ELEMENTWISE = {"row_tiles": 2, "words": 2, "a_row_stride": 2, "b_row_stride": 2}
DEEP, WIDE = TINY.activation_depth, TINY.wide_depth

FAULTS = [
    (Opcode.GEMM, GEMM | {"row_tiles": 0}),
    (Opcode.GEMM, GEMM | {"column_tiles": 0}),
    (Opcode.GEMM, GEMM | {"blocks": 0}),
    (Opcode.GEMM, GEMM | {"beats": 0}),
    (Opcode.GEMM, GEMM | {"beats": 9}),
    (Opcode.GEMM, GEMM | {"keep_maximum": 1}),
    (Opcode.GEMM, GEMM | {"function": 3}),
    (Opcode.GEMM, GEMM | {"residual": 1, "residual_shift": -9}),
    (Opcode.GEMM, GEMM | {"hold": 1, "row_tiles": 2}),
    (Opcode.GEMM, GEMM | {"accumulate": 1, "column_tiles": 2}),
    (Opcode.GEMM, GEMM | {"a": DEEP - 1, "blocks": 2}),
    (Opcode.GEMM, GEMM | {"w": TINY.weight_depth - 7}),
    (Opcode.GEMM, GEMM | {"w": TINY.operand_depth - 7, "operand": 1}),
    (Opcode.GEMM, GEMM | {"parameter": TINY.parameter_depth - 7}),
    (Opcode.GEMM, GEMM | {"lane_scaled": 1, "lane": TINY.lane_depth}),
    (Opcode.GEMM, GEMM | {"residual": 1, "residual_address": WIDE}),
    (Opcode.GEMM, GEMM | {"out": DEEP}),
    (Opcode.GEMM, GEMM | {"wide": 1, "out": WIDE}),
    (Opcode.GEMM, GEMM | {"keep_maximum": 1, "columns_inner": 1, "maximum": TINY.lane_depth}),
    (Opcode.LOAD, LOAD | {"memory": 6}),
    (Opcode.LOAD, LOAD | {"format": WeightFormat.BITMAP, "beats": 1}),
    (Opcode.LOAD, LOAD | {"dram": DATA + 4}),
    (Opcode.LOAD, LOAD | {"dram_stride": 4}),
    (Opcode.LOAD, LOAD | {"count": 0}),
    (Opcode.LOAD, LOAD | {"runs": 0}),
    (Opcode.LOAD, LOAD | {"local": DEEP}),
    (Opcode.LOAD, LOAD | {"dram": 1 << 24}),
    (Opcode.LOAD, WEIGHTS | {"format": 3}),
    (Opcode.LOAD, WEIGHTS | {"format": WeightFormat.BITMAP, "beats": 0}),
    (Opcode.LOAD, WEIGHTS | {"format": WeightFormat.BITMAP, "beats": 9}),
    (Opcode.LOAD, WEIGHTS | {"format": WeightFormat.BITMAP, "beats": 5}),
    (Opcode.LOAD, WEIGHTS | {"local": TINY.weight_depth - 11}),
    (Opcode.STORE, LOAD | {"memory": Memory.WEIGHT}),
    (Opcode.STORE, LOAD | {"dram": DATA + 4}),
    (Opcode.STORE, LOAD | {"count": 0}),
    (Opcode.STORE, LOAD | {"local": DEEP}),
    (Opcode.STORE, LOAD | {"dram": 1 << 24}),
    (Opcode.MOVE, MOVE | {"row_tiles": 0}),
    (Opcode.MOVE, MOVE | {"blocks": 0}),
    (Opcode.MOVE, MOVE | {"a": DEEP}),
    (Opcode.MOVE, MOVE | {"mode": MoveMode.KEYS, "out": TINY.operand_depth - 7}),
    (Opcode.MOVE, MOVE | {"mode": MoveMode.VALUES, "out": TINY.operand_depth - 3}),
    (Opcode.SOFTMAX, SOFTMAX | {"row_tiles": 0}),
    (Opcode.SOFTMAX, SOFTMAX | {"words": 0}),
    (Opcode.SOFTMAX, SOFTMAX | {"a": WIDE}),
    (Opcode.SOFTMAX, SOFTMAX | {"out": DEEP}),
    (Opcode.SOFTMAX, SOFTMAX | {"maximum": TINY.lane_depth}),
    (Opcode.SOFTMAX, SOFTMAX | {"lane": TINY.lane_depth}),
    (Opcode.LAYER_NORM, NORM | {"words": 0}),
    (Opcode.LAYER_NORM, NORM | {"a": WIDE}),
    (Opcode.LAYER_NORM, NORM | {"wide_out": WIDE}),
    (Opcode.LAYER_NORM, NORM | {"narrow": 1, "out": DEEP}),
    (Opcode.LAYER_NORM, NORM | {"parameter": TINY.norm_depth - 7}),
    (Opcode.ELEMENTWISE, ELEMENTWISE | {"words": 0}),
    (Opcode.ELEMENTWISE, ELEMENTWISE | {"a": DEEP - 3}),
    (Opcode.ELEMENTWISE, ELEMENTWISE | {"b": WIDE - 3, "b_wide": 1}),
    (Opcode.ELEMENTWISE, ELEMENTWISE | {"out": DEEP}),
    (Opcode.ELEMENTWISE, ELEMENTWISE | {"wide": 1, "out": WIDE}),
]


def stop(engine, image):
    with pytest.raises(MachineError) as error:
        engine.run(image, {})
    return error.value.cause, error.value.engine, error.value.index, error.value.text


@pytest.mark.verilator
@pytest.mark.parametrize(
    ("opcode", "operands"), FAULTS, ids=[f"{o.name.lower()}{n}" for n, (o, _) in enumerate(FAULTS)]
)
def test_engines_stop_alike(opcode, operands):
    program = Program()
    program.place(1 << 10)
    program.add(Opcode.ELEMENTWISE, row_tiles=1, words=1)
    program.add(opcode, **operands)
    program.sequential()
    program.add(Opcode.ELEMENTWISE, row_tiles=1, words=1)
    image = program.image()
    expected = stop(FunctionalEngine(), image)
    assert expected[2] == 1
    assert stop(CycleEngine(), image) == expected
    assert stop(RtlEngine(), image) == expected


@pytest.mark.verilator
def test_a_token_that_never_comes_is_blamed_alike():
    program = Program()
    program.add(Opcode.ELEMENTWISE, row_tiles=1, words=1)
    program.add(Opcode.ELEMENTWISE, wait=1, row_tiles=1, words=1)
    image = program.image()
    assert stop(CycleEngine(), image) == stop(RtlEngine(watchdog=1000), image)
