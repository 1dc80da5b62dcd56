"""The RTL as a whole: results against the functional engine, errors, the simulator's options."""

import dataclasses
import itertools

import numpy as np
import pytest

from tests.agree.programs import DATA, Program, random_program
from twillcore.config import PRESETS
from twillcore.dram import Dram
from twillcore.errors import TwillcoreError
from twillcore.isa import TOKEN_COUNTER_BITS, WORD_BYTES, Cause, Engine, Memory, Opcode
from twillcore.sim import rtl
from twillcore.sim.functional import FunctionalEngine
from twillcore.sim.machine_error import MachineError
from twillcore.sim.rtl import CHUNK_CYCLES, Faults, RtlEngine

pytestmark = pytest.mark.verilator
TINY = PRESETS["tiny"]


def gemm_program(seed=1):
    """Two row tiles, two column tiles, two blocks of K, dense."""
    rng = np.random.default_rng(seed)
    program = Program()
    a = program.slot("a", "int8", (1, 8, 16))
    out = program.slot("out", "int8", (1, 8, 16), output=True)
    weights = program.place(rng.integers(-128, 128, (32, 8)).astype(np.int8).tobytes())
    parameters = program.parameters(rng.integers(-1000, 1000, 16), 20000, 20, 4)
    program.add(Opcode.LOAD, memory=Memory.ACTIVATION, dram=a.address, count=4, runs=1)
    program.add(Opcode.LOAD, memory=Memory.WEIGHT, dram=weights, count=32, runs=1)
    program.add(Opcode.LOAD, memory=Memory.PARAMETER, dram=parameters, count=16, runs=1)
    program.add(
        Opcode.GEMM, a_row_stride=2, row_tiles=2, column_tiles=2, blocks=2, beats=8, counted=1,
        columns_inner=1, out=16, out_row_stride=2,
    )  # fmt: skip
    program.add(Opcode.STORE, memory=Memory.ACTIVATION, dram=out.address, local=16, count=4, runs=1)
    program.sequential()
    return program, {"a": rng.integers(-128, 128, (1, 8, 16)).astype(np.int8)}


@pytest.mark.parametrize("dram", [Dram(1), Dram(), Dram(7, 3, 1), Dram(200, 1, 2)], ids=str)
def test_a_program_by_hand_equals_the_functional_engine(dram):
    program, inputs = gemm_program()
    expected = FunctionalEngine().run(program.image(), inputs)
    result = RtlEngine().run(program.image(), inputs, dram=dram)
    assert result.outputs.keys() == expected.outputs.keys()
    assert (result.outputs["out"] == expected.outputs["out"]).all()
    assert result.bytes_written == 8 * 16


@pytest.mark.parametrize("seed", range(12))
def test_random_programs_end_and_account_for_every_cycle(seed):
    image = random_program(seed)
    result = RtlEngine().run(image, {}, dram=Dram(latency=1 + 13 * (seed % 4)), max_cycles=100_000)
    for engine, counters in result.counters.items():
        assert sum(counters.values()) == result.cycles, engine
    instructions = image.instructions()
    assert [span.index for span in result.spans] == list(range(len(instructions) - 1))
    for engine in Engine:
        spans = [span for span in result.spans if instructions[span.index].engine == engine]
        for earlier, later in itertools.pairwise(spans):
            assert earlier.start < later.start
            assert earlier.end < later.end
        assert all(span.start < span.end < result.cycles for span in spans)
    for giver, taker in dependences(instructions):
        assert result.spans[giver].end < result.spans[taker].start


def dependences(instructions):
    """Yield (who gives a token, who takes it): tokens of a pair of engines are taken in order."""
    for giver in Engine:
        for taker in Engine:
            gives = [k for k, i in enumerate(instructions)
                     if i.engine == giver and i.signal >> taker & 1]  # fmt: skip
            takes = [k for k, i in enumerate(instructions)
                     if i.engine == taker and i.wait >> giver & 1]  # fmt: skip
            yield from zip(gives, takes, strict=False)


def test_two_runs_are_equal():
    image = random_program(3)
    first, second = (RtlEngine().run(image, {}) for _ in range(2))
    assert (first.cycles, first.spans, first.counters) == (
        second.cycles, second.spans, second.counters)  # fmt: skip


def test_instructions_of_an_independent_engine_overlap():
    program = Program()
    program.place(64 * TINY.dsp_columns)
    program.add(Opcode.LOAD, memory=Memory.WEIGHT, dram=DATA, count=64, runs=1)
    program.add(Opcode.MOVE, row_tiles=4, blocks=8, a_row_stride=8, column_stride=64)
    load, move = RtlEngine().run(program.image(), {}).spans
    assert load.start < move.start < load.end


class TestErrors:
    def stopped(self, program, *, inputs=None, **options):
        with pytest.raises(MachineError) as caught:
            RtlEngine(**options).run(program.image(), inputs or {}, max_cycles=100_000)
        return caught.value

    def test_address_out_of_range(self):
        program, inputs = gemm_program()
        bad = program.add(Opcode.GEMM, a=510, row_tiles=1, column_tiles=1, blocks=4, beats=8)
        error = self.stopped(program, inputs=inputs)
        assert (error.cause, error.engine) == (Cause.ADDRESS_OUT_OF_RANGE, "gemm")
        assert error.index == bad
        assert "gemm a=510" in str(error)

    def test_illegal_instruction(self):
        program, inputs = gemm_program()
        image = program.image()
        memory = bytearray(image.memory)
        memory[2 * WORD_BYTES] |= 0x0F
        with pytest.raises(MachineError, match="unknown opcode") as caught:
            RtlEngine().run(dataclasses.replace(image, memory=bytes(memory)), inputs)
        assert (caught.value.cause, caught.value.engine, caught.value.index) == (
            Cause.ILLEGAL_INSTRUCTION, "dispatch", 2)  # fmt: skip

    def test_memory_error_on_a_read(self):
        program, inputs = gemm_program()
        weights = program.instructions[1]["dram"]
        error = self.stopped(program, inputs=inputs, faults=Faults(read=weights + 100))
        assert (error.cause, error.engine, error.index) == (Cause.AXI_READ_ERROR, "load", 1)

    def test_memory_error_on_an_instruction(self):
        program, inputs = gemm_program()
        error = self.stopped(program, inputs=inputs, faults=Faults(read=3 * WORD_BYTES))
        assert (error.cause, error.engine, error.index) == (Cause.AXI_READ_ERROR, "dispatch", 3)

    def test_memory_error_on_a_write(self):
        program, inputs = gemm_program()
        out = program.outputs[0].address
        error = self.stopped(program, inputs=inputs, faults=Faults(write=out + 64))
        assert (error.cause, error.engine, error.index) == (Cause.AXI_WRITE_ERROR, "store", 4)

    def test_read_beyond_the_memory(self):
        program = Program()
        program.add(Opcode.LOAD, memory=Memory.WEIGHT, dram=1 << 24, count=1, runs=1)
        assert self.stopped(program).cause == Cause.AXI_READ_ERROR

    def test_a_token_that_never_comes(self):
        program, inputs = gemm_program()
        lost = program.add(Opcode.MOVE, wait=1 << Engine.VECTOR, row_tiles=1, blocks=1)
        error = self.stopped(program, inputs=inputs, watchdog=3000)
        assert (error.cause, error.engine, error.index) == (Cause.WATCHDOG, "move", lost)
        assert "wait=vector" in str(error)

    def test_a_memory_that_hangs(self):
        program, inputs = gemm_program()
        error = self.stopped(program, inputs=inputs, faults=Faults(hang=100), watchdog=3000)
        assert (error.cause, error.engine, error.index) == (Cause.WATCHDOG, "load", 0)

    def test_a_memory_that_never_answers(self):
        program, inputs = gemm_program()
        error = self.stopped(program, inputs=inputs, faults=Faults(hang=0), watchdog=3000)
        assert (error.cause, error.index) == (Cause.WATCHDOG, None)

    def test_too_many_tokens(self):
        """Every LOAD gives MOVE a token, and MOVE takes none."""
        program = Program()
        program.add(Opcode.LOAD, signal=1 << Engine.MOVE, memory=Memory.WEIGHT, count=1, runs=1)
        limit = (1 << TOKEN_COUNTER_BITS) - 1
        words = program.instructions * (limit + 5)
        memory = b"".join(i.encode().to_bytes(WORD_BYTES, "little") for i in words)
        image = dataclasses.replace(
            program.image(), memory=memory, memory_bytes=len(memory) + 512,
            instruction_count=len(words),
        )  # fmt: skip
        with pytest.raises(MachineError) as caught:
            RtlEngine().run(image, {})
        error = caught.value
        assert (error.cause, error.engine, error.index) == (Cause.TOKEN_OVERFLOW, "load", limit)

    def test_a_limit_on_cycles(self):
        program, inputs = gemm_program()
        with pytest.raises(TwillcoreError, match=r"^the program still runs after 100 cycles$"):
            RtlEngine().run(program.image(), inputs, max_cycles=100)

    def test_a_missing_compiler_is_named(self, monkeypatch, tmp_path):
        monkeypatch.setenv("TWILLCORE_CACHE", str(tmp_path))
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(rtl, "to_verilog", lambda config, gated: "module twillcore; endmodule")
        program, inputs = gemm_program()
        with pytest.raises(TwillcoreError, match=r"needs g\+\+, make: install g\+\+ and make"):
            RtlEngine().run(program.image(), inputs)


def test_the_waveform_covers_its_window(tmp_path):
    program, inputs = gemm_program()
    whole, part = tmp_path / "whole.vcd", tmp_path / "part.vcd"
    RtlEngine().run(program.image(), inputs, vcd=whole)
    RtlEngine().run(program.image(), inputs, vcd=part, window=(100, 120))
    times = [int(line[1:]) for line in part.read_text().splitlines() if line.startswith("#")]
    assert 0 < max(times) - min(times) <= 20 * 10
    assert whole.stat().st_size > 2 * part.stat().st_size
    assert "trace_start" in whole.read_text()


def test_progress_is_reported():
    program = Program()
    program.place(1 << 12)
    for _ in range(60):
        program.add(Opcode.LOAD, memory=Memory.WEIGHT, dram=DATA, count=512, runs=1)
    seen = []
    result = RtlEngine().run(program.image(), {}, dram=Dram(beat_cycles=4), progress=seen.append)
    assert result.cycles > CHUNK_CYCLES
    assert seen == sorted(seen)
    assert seen[-1] == result.cycles
    assert len(seen) > result.cycles // CHUNK_CYCLES
