"""The DSP core and the LUT core side by side: results, times and counters of every engine agree."""

import itertools
import time

import pytest

from tests.agree.programs import DATA, Program, random_chain, random_program
from tests.agree.test_engines import assert_same_outputs, assert_same_time, memory
from tests.agree.test_errors import stop
from twillcore.config import PRESETS
from twillcore.isa import ISA, Cause, Memory, Opcode
from twillcore.sim.cycle import CycleEngine, Timeline
from twillcore.sim.functional import FunctionalEngine
from twillcore.sim.rtl import RtlEngine

PLAIN = PRESETS["tiny"].replace(name="cores", lut_columns=8, lut_weight_depth=256, tap_depth=0)
#: Two words per LUT tile, whose drain is longer than the DSP core's; accumulators that overflow.
UNEQUAL = PLAIN.replace(name="cores_unequal", lanes=2, lut_columns=16, accumulator_bits=20)
WINDOWS = PLAIN.replace(name="cores_windows", tap_depth=32)
#: A row of weights is one and a half beats, one of bit-planes half a beat; no MOVE.
PADDED = WINDOWS.replace(
    name="cores_padded", dsp_columns=24, axi_data_bits=128, operand_depth=0, weight_depth=2048
)
#: The LUT core reads through the shared port in the slots of engines that are not there.
SLOTS = WINDOWS.replace(name="cores_slots", wide_depth=0, lane_depth=0, norm_depth=0,
                        operand_depth=0)  # fmt: skip
CONFIGS = {config.name: config for config in (PLAIN, UNEQUAL, WINDOWS, PADDED, SLOTS)}
GEMM = {"row_tiles": 1, "column_tiles": 1, "blocks": 1, "beats": 1}


def check(image, seed=0):
    """Run on both engines that know time; returns the cycle model's result."""
    dram = memory(seed)
    cycle, rtl = CycleEngine().run(image, {}, dram=dram), RtlEngine().run(image, {}, dram=dram)
    assert_same_outputs(cycle.outputs, rtl)
    assert_same_time(image, cycle, rtl)
    return cycle


@pytest.mark.verilator
@pytest.mark.parametrize("name", CONFIGS)
def test_random_programs(name):
    for seed in range(60):
        check(random_program(seed, CONFIGS[name]), seed)


@pytest.mark.verilator
@pytest.mark.parametrize("name", CONFIGS)
def test_results_of_cores_that_work_side_by_side(name):
    """All activations and wide words after chains of GEMMs on both cores."""
    both = 0
    for seed in range(25):
        result = check(random_chain(seed, CONFIGS[name]), seed)
        both += all(result.counters[engine]["busy"] for engine in ("gemm", "lut"))
    assert both > 15


def cores(instructions, config=PLAIN):
    """Return a program that hands ``instructions`` to both cores at the same time."""
    program = Program(config)
    program.place(1 << 12)
    program.add(Opcode.LOAD, memory=Memory.ACTIVATION, dram=DATA, count=16, runs=1)
    first = {}
    for opcode, operands in instructions:
        is_gemm = opcode in (Opcode.GEMM, Opcode.LUT_GEMM)
        index = program.add(opcode, **GEMM | operands if is_gemm else operands)
        engine = ISA[opcode].engine
        if engine not in first:
            first[engine] = index
            program.depend(0, index)
    return program.image()


def spans(image, result):
    """Return the duration of every instruction, by opcode."""
    found = {}
    for i, span in zip(image.instructions(), result.spans, strict=False):
        found.setdefault(i.opcode, []).append(span.end - span.start)
    return found


@pytest.mark.verilator
def test_time_is_proportional_to_the_bits_of_a_weight():
    blocks, times = 200, []
    for bits in range(1, 9):
        image = cores([(Opcode.LUT_GEMM, {"blocks": blocks, "beats": bits})],
                      PLAIN.replace(lut_weight_depth=2048))  # fmt: skip
        result = CycleEngine().run(image, {})
        assert result.counters["lut"]["busy"] == blocks * bits
        times.append(spans(image, result)[Opcode.LUT_GEMM][0])
    assert all(abs(b - a - blocks) < 8 for a, b in itertools.pairwise(times))
    check(cores([(Opcode.LUT_GEMM, {"blocks": 25, "beats": 8})]))


@pytest.mark.verilator
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("beats", [1, 2, 5])
def test_reads_that_meet(beats, bits):
    """The DSP core is not slowed down; the LUT core loses what the port has not left."""
    dsp = (Opcode.GEMM, {"blocks": 100, "beats": beats})
    lut = (Opcode.LUT_GEMM, {"blocks": 25, "beats": bits})
    alone = check(cores([dsp])), check(cores([lut]))
    both = check(cores([dsp, lut]))
    assert both.counters["gemm"]["blocked"] == alone[0].counters["gemm"]["blocked"] == 0
    assert alone[1].counters["lut"]["blocked"] == 0
    if beats == 1:  # every cycle
        assert both.counters["lut"]["blocked"] > 90
    elif beats == 2 and bits % 2 == 0:  # they meet once at most
        assert both.counters["lut"]["blocked"] <= 1
    elif beats == 2:
        assert both.counters["lut"]["blocked"] >= 20


@pytest.mark.verilator
@pytest.mark.parametrize(
    ("config", "least", "most"),
    [(WINDOWS, 280, 288), (SLOTS, 56, 72)],
    ids=["one port", "slots"],
)
def test_reads_beside_a_core_that_reads_always(config, least, most):
    """Two reads in two cycles on the DSP core, two in four on the LUT core, in windows of stride 2.

    With one port the LUT core waits until the other one has finished, for 6 * 24 * 2 cycles; with
    slots 2, 3, 5 and 7 of the shared port its 48 blocks take 16 / 3 cycles each.
    """
    window = {"taps": 8, "stride": 2, "width": 40, "height": 40, "pitch": 8, "tile_y": 1}
    common = {"windowed": 1, "blocks": 3}
    result = check(cores([
        (Opcode.WINDOW, window), (Opcode.LUT_WINDOW, window),
        (Opcode.GEMM, common | {"beats": 2, "row_tiles": 6}),
        (Opcode.LUT_GEMM, common | {"beats": 4, "row_tiles": 2}),
    ], config))  # fmt: skip
    define = config.lanes + 1
    assert result.counters["gemm"]["blocked"] == define
    assert least <= result.counters["lut"]["blocked"] - define <= most


@pytest.mark.verilator
@pytest.mark.parametrize("delay", range(12))
def test_tiles_that_want_the_drain_at_once(delay):
    """Tiles of both cores end together, or one some cycles after the other."""
    image = cores([
        (Opcode.GEMM, {"blocks": 20, "row_tiles": 9, "beats": 1}),
        (Opcode.LUT_GEMM, {"blocks": 1, "beats": delay % 8 + 1, "row_tiles": 3 + delay}),
        (Opcode.LUT_GEMM, {"blocks": 1 + delay // 2, "beats": 2, "row_tiles": 30}),
        (Opcode.GEMM, {"blocks": 1, "beats": 1, "row_tiles": 30}),
    ])  # fmt: skip
    result = check(image)
    assert result.counters["gemm"]["blocked"] > 0
    assert result.counters["lut"]["blocked"] > 0


FAULTS = [
    ({"row_tiles": 0}, Cause.ILLEGAL_INSTRUCTION),
    ({"beats": 0}, Cause.ILLEGAL_INSTRUCTION),
    ({"beats": 9}, Cause.ILLEGAL_INSTRUCTION),
    ({"operand": 1}, Cause.ILLEGAL_INSTRUCTION),
    ({"counted": 1}, Cause.ILLEGAL_INSTRUCTION),
    ({"keep_maximum": 1, "columns_inner": 1}, Cause.ILLEGAL_INSTRUCTION),
    ({"pool": 1}, Cause.ILLEGAL_INSTRUCTION),
    ({"words": 3}, Cause.ILLEGAL_INSTRUCTION),
    ({"hold": 1, "blocks": 1, "beats": 1}, Cause.ILLEGAL_INSTRUCTION),
    ({"w": UNEQUAL.lut_weight_depth - 1, "beats": 2}, Cause.ADDRESS_OUT_OF_RANGE),
    ({"a": UNEQUAL.activation_depth}, Cause.ADDRESS_OUT_OF_RANGE),
    ({"parameter": UNEQUAL.parameter_depth - 15}, Cause.ADDRESS_OUT_OF_RANGE),
    ({"out": UNEQUAL.activation_depth - 1}, Cause.ADDRESS_OUT_OF_RANGE),
]


@pytest.mark.verilator
@pytest.mark.parametrize(("operands", "cause"), FAULTS)
def test_faults_of_the_lut_core(operands, cause):
    image = cores([(Opcode.LUT_GEMM, operands)], UNEQUAL)
    expected = stop(FunctionalEngine(), image)
    assert expected[:3] == (cause, "lut", 1)
    assert stop(RtlEngine(), image) == expected


@pytest.mark.verilator
def test_faults_of_loads_of_bit_planes():
    load = {"memory": Memory.LUT_WEIGHT, "dram": DATA, "count": 2, "runs": 1}
    for operands in (load | {"local": 255}, load | {"format": 1, "beats": 1}):
        program = Program(PLAIN)
        program.place(1 << 10)
        program.add(Opcode.LOAD, **operands)
        image = program.image()
        expected = stop(FunctionalEngine(), image)
        assert expected[1:3] == ("load", 0)
        assert stop(RtlEngine(), image) == expected


def test_the_model_of_a_large_program_is_fast():
    """A million blocks per core, in well below a second on an idle machine."""
    image = cores([
        (Opcode.GEMM, {"blocks": 64, "beats": 3, "row_tiles": 4000, "column_tiles": 4}),
        (Opcode.LUT_GEMM, {"blocks": 32, "beats": 5, "row_tiles": 4000, "column_tiles": 8}),
    ])  # fmt: skip
    timeline = Timeline(PLAIN, image.instructions(), memory(0))
    begin = time.process_time()
    timeline.run()
    assert time.process_time() - begin < 5
