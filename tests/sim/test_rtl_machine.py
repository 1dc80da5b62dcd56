"""Programs one after another on one instance of the RTL: starts, resets, and clocks that stop."""

import dataclasses
from functools import cache

import numpy as np
import pytest

from tests.agree.graphs import random_graph, random_inputs
from tests.agree.programs import Program, random_program
from tests.sim.test_rtl import TINY, gemm_program
from twillcore.compiler.pipeline import compile_graph
from twillcore.config import PRESETS
from twillcore.dram import Dram
from twillcore.errors import TwillcoreError
from twillcore.hw.verilog import to_verilog
from twillcore.isa import WORD_BYTES, Cause, Engine, Memory, Opcode
from twillcore.sim.machine_error import MachineError
from twillcore.sim.rtl import Faults, RtlEngine, RtlMachine

pytestmark = pytest.mark.verilator


@cache
def subject(seed):
    """Return a compiled random network and inputs of it."""
    graph = random_graph(seed)
    return compile_graph(graph), random_inputs(graph, seed)


def assert_same(result, expected):
    """Compare all but the time that the simulation took, and who ran it."""
    assert result.outputs.keys() == expected.outputs.keys()
    for name, tensor in expected.outputs.items():
        np.testing.assert_array_equal(result.outputs[name], tensor, name)
    for field in ("cycles", "spans", "counters", "bytes_read", "bytes_written"):
        assert getattr(result, field) == getattr(expected, field), field


@pytest.mark.parametrize("dram", [Dram(1), Dram(), Dram(200, 3, 2)], ids=str)
def test_a_second_start_is_like_the_first(dram):
    """The same program again and another one between, in the state that they leave behind."""
    subjects = [subject(seed) for seed in (0, 0, 3, 0, 3)]
    with RtlMachine(TINY) as machine:
        for image, inputs in subjects:
            expected = RtlEngine().run(image, inputs, dram=dram)
            assert_same(machine.run(image, inputs, dram=dram), expected)


def test_other_inputs_give_other_outputs():
    image, inputs = subject(0)
    others = random_inputs(random_graph(0), 99)
    with RtlMachine(TINY) as machine:
        machine.run(image, inputs)
        assert_same(machine.run(image, others), RtlEngine().run(image, others))


def out_of_range():
    program, inputs = gemm_program()
    program.add(Opcode.GEMM, a=510, row_tiles=1, column_tiles=1, blocks=4, beats=8)
    return program.image(), inputs, {}


def vector_out_of_range():
    program, inputs = gemm_program()
    program.add(Opcode.ELEMENTWISE, row_tiles=4, words=4, a=508, a_row_stride=4, b_row_stride=4)
    return program.image(), inputs, {}


def unknown_opcode():
    program, inputs = gemm_program()
    image = program.image()
    memory = bytearray(image.memory)
    memory[2 * WORD_BYTES] |= 0x0F
    return dataclasses.replace(image, memory=bytes(memory)), inputs, {}


def read_error():
    program, inputs = gemm_program()
    return program.image(), inputs, {"faults": Faults(read=program.instructions[1]["dram"] + 100)}


def fetch_error():
    program, inputs = gemm_program()
    return program.image(), inputs, {"faults": Faults(read=3 * WORD_BYTES)}


def write_error():
    program, inputs = gemm_program()
    return program.image(), inputs, {"faults": Faults(write=program.outputs[0].address + 64)}


def lost_token():
    program, inputs = gemm_program()
    program.add(Opcode.MOVE, wait=1 << Engine.VECTOR, row_tiles=1, blocks=1)
    return program.image(), inputs, {"watchdog": 3000}


def memory_hangs_for_a_while():
    program, inputs = gemm_program()
    return program.image(), inputs, {"faults": Faults(hang=100), "watchdog": 3000}


ERRORS = {
    out_of_range: Cause.ADDRESS_OUT_OF_RANGE,
    vector_out_of_range: Cause.ADDRESS_OUT_OF_RANGE,
    unknown_opcode: Cause.ILLEGAL_INSTRUCTION,
    read_error: Cause.AXI_READ_ERROR,
    fetch_error: Cause.AXI_READ_ERROR,
    write_error: Cause.AXI_WRITE_ERROR,
    lost_token: Cause.WATCHDOG,
    memory_hangs_for_a_while: Cause.WATCHDOG,
}


def assert_stops(machine, failure, cause):
    image, inputs, options = failure()
    with pytest.raises(MachineError) as caught:
        machine.run(image, inputs, **options)
    assert caught.value.cause == cause


@pytest.mark.parametrize("failure", ERRORS, ids=lambda failure: failure.__name__)
def test_a_reset_by_command_after_an_error_lets_the_next_program_run(failure):
    image, inputs = subject(3)
    expected = RtlEngine().run(image, inputs)
    with RtlMachine(TINY) as machine:
        machine.run(image, inputs)
        for _ in range(2):
            assert_stops(machine, failure, ERRORS[failure])
            machine.reset()
            assert_same(machine.run(image, inputs), expected)


def test_an_engine_that_failed_needs_the_reset():
    image, inputs = gemm_program()[0].image(), gemm_program()[1]
    with RtlMachine(TINY) as machine:
        assert_stops(machine, out_of_range, Cause.ADDRESS_OUT_OF_RANGE)
        with pytest.raises(MachineError, match=r"(?i)watchdog|progress"):
            machine.run(image, inputs, watchdog=3000)


def test_a_reset_by_command_after_a_normal_end():
    image, inputs = subject(0)
    with RtlMachine(TINY) as machine:
        first = machine.run(image, inputs)
        machine.reset()
        machine.reset()
        assert_same(machine.run(image, inputs), first)


def test_tokens_that_a_program_leaves_behind_are_not_the_next_ones():
    program = Program()
    program.add(Opcode.LOAD, signal=1 << Engine.MOVE, memory=Memory.WEIGHT, count=1, runs=1)
    waiting = Program()
    waiting.add(Opcode.MOVE, wait=1 << Engine.LOAD, row_tiles=1, blocks=1)
    with RtlMachine(TINY) as machine:
        machine.run(program.image(), {})
        with pytest.raises(MachineError) as caught:
            machine.run(waiting.image(), {}, watchdog=3000)
    assert caught.value.cause == Cause.WATCHDOG


def test_a_store_beyond_its_memory_leaves_bursts_without_data():
    program = Program()
    program.add(
        Opcode.STORE, memory=Memory.ACTIVATION, local=TINY.activation_depth, count=1, runs=1
    )
    with RtlMachine(TINY) as machine:
        with pytest.raises(MachineError):
            machine.run(program.image(), {})
        with pytest.raises(TwillcoreError, match="transfers are still outstanding"):
            machine.reset()


def test_a_program_that_still_runs_is_not_joined_by_another():
    image, inputs = subject(0)
    with RtlMachine(TINY) as machine:
        with pytest.raises(TwillcoreError, match="still runs after 50 cycles"):
            machine.run(image, inputs, max_cycles=50)
        with pytest.raises(TwillcoreError, match="the program before still runs"):
            machine.run(image, inputs)


def test_a_program_for_another_configuration_is_refused():
    other = random_program(0, TINY.replace(name="other", lanes=8))
    with (
        RtlMachine(TINY) as machine,
        pytest.raises(TwillcoreError, match=r"configuration other .*, the machine is tiny"),
    ):
        machine.run(other, {})


class TestGating:
    """Clocks that stop change nothing: against the Verilog of the product, in every cycle."""

    DRAMS = (Dram(1), Dram(), Dram(7, 3, 1), Dram(200, 1, 2))

    @pytest.mark.parametrize("start", range(0, 120, 24))
    def test_random_programs(self, start):
        with RtlMachine(TINY) as gated, RtlMachine(TINY, gated=False) as product:
            for seed in range(start, start + 24):
                image, dram = random_program(seed), self.DRAMS[seed % len(self.DRAMS)]
                assert_same(gated.run(image, {}, dram=dram), product.run(image, {}, dram=dram))

    def test_random_networks(self):
        with RtlMachine(TINY) as gated, RtlMachine(TINY, gated=False) as product:
            for seed in range(30):
                image, inputs = subject(seed)
                dram = self.DRAMS[seed % len(self.DRAMS)]
                expected = product.run(image, inputs, dram=dram)
                assert_same(gated.run(image, inputs, dram=dram), expected)

    @pytest.mark.parametrize("failure", ERRORS, ids=lambda failure: failure.__name__)
    def test_errors(self, failure):
        errors = []
        for gated in (True, False):
            image, inputs, options = failure()
            with RtlMachine(TINY, gated=gated) as machine:
                with pytest.raises(MachineError) as caught:
                    machine.run(image, inputs, **options)
                errors.append((str(caught.value), machine.cycle))
        assert errors[0] == errors[1]

    def test_the_verilog_of_the_product_has_one_clock(self):
        text = to_verilog(PRESETS["tiny"])
        assert "_clock" not in text
        assert "_awake" not in text
