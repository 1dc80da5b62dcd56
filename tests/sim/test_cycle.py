"""What the cycle model promises by itself; tests/agree/test_engines.py holds it to the RTL."""

import pytest

from tests.agree.programs import DATA, TINY, Program, random_program
from twillcore.dram import Dram
from twillcore.isa import Cause, Memory, Opcode
from twillcore.sim.cycle import CycleEngine, length, union
from twillcore.sim.functional import FunctionalEngine
from twillcore.sim.machine_error import MachineError


def run(program, **dram):
    return CycleEngine().run(program.image(), {}, dram=Dram(**dram))


def load(program, count=4, local=0):
    return program.add(
        Opcode.LOAD, memory=Memory.ACTIVATION, dram=DATA, count=count, runs=1, local=local
    )


def elementwise(program, tiles=1):
    return program.add(Opcode.ELEMENTWISE, row_tiles=tiles, words=1)


@pytest.mark.parametrize("seed", range(20))
def test_every_engines_counters_add_up_to_all_cycles(seed):
    result = CycleEngine().run(random_program(seed), {}, dram=Dram(seed % 50 + 1, seed % 3 + 1))
    for counts in result.counters.values():
        assert min(counts.values()) >= 0
        assert sum(counts.values()) == result.cycles


@pytest.mark.parametrize("seed", range(20))
def test_spans_respect_order_and_tokens(seed):
    image = random_program(seed)
    spans = CycleEngine().run(image, {}).spans
    program = image.instructions()
    assert [span.index for span in spans] == list(range(len(program) - 1))
    last = {}
    for i, span in zip(program, spans, strict=False):
        assert span.start < span.end
        if i.engine in last:
            assert last[i.engine].start < span.start
            assert last[i.engine].end < span.end
        last[i.engine] = span


def test_results_are_those_of_the_functional_engine():
    image = random_program(3)
    result = CycleEngine().run(image, {})
    assert result.bytes_written == FunctionalEngine().run(image, {}).bytes_written
    assert result.bytes_read >= FunctionalEngine().run(image, {}).bytes_read  # FETCH reads ahead


def test_a_program_of_halt_alone_takes_the_latency_of_its_fetch():
    # Address in cycle 1, on the bus in 2, a word of four beats, two cycles to DISPATCH's register.
    for latency in (1, 40):
        assert run(Program(), latency=latency).cycles == 2 + latency + 3 + 2 + 1


def test_time_grows_with_latency_and_with_slower_beats():
    program = Program()
    program.place(1 << 12)
    load(program, count=100)
    cycles = [run(program, latency=latency).cycles for latency in (1, 10, 100)]
    assert cycles == sorted(set(cycles))
    assert run(program, beat_cycles=3).cycles > 3 * 100 * TINY.word_bytes // TINY.axi_bytes


def test_a_token_is_taken_two_cycles_after_it_is_given():
    program = Program()
    program.place(1 << 12)
    first, then = load(program), elementwise(program)
    program.depend(first, then)
    result = run(program)
    assert result.spans[then].start == result.spans[first].end + 2
    assert result.counters["vector"]["wait_load"] > 0


def test_engines_run_side_by_side_without_tokens():
    program = Program()
    program.place(1 << 12)
    load(program, count=64, local=64)
    elementwise(program, tiles=8)
    spans = run(program).spans
    assert spans[1].start < spans[0].end


def test_a_token_that_never_comes_names_the_instruction():
    program = Program()
    elementwise(program)
    program.add(Opcode.ELEMENTWISE, wait=1, row_tiles=1, words=1)
    with pytest.raises(MachineError) as error:
        run(program)
    assert (error.value.cause, error.value.engine, error.value.index) == (
        Cause.WATCHDOG, "vector", 1,
    )  # fmt: skip
    assert error.value.text.startswith("elementwise wait=load")


def test_more_tokens_than_a_counter_holds_are_an_error(monkeypatch):
    monkeypatch.setattr("twillcore.sim.cycle.TOKEN_COUNTER_BITS", 2)
    program = Program()
    for _ in range(4):
        program.add(Opcode.ELEMENTWISE, signal=1, row_tiles=1, words=1)
    with pytest.raises(MachineError) as error:
        run(program)
    assert (error.value.cause, error.value.index) == (Cause.TOKEN_OVERFLOW, 3)
    program.instructions.pop()
    run(program)


def test_illegal_programs_are_refused_before_any_time_passes():
    program = Program()
    program.add(Opcode.ELEMENTWISE, row_tiles=1, words=1, a=TINY.activation_depth)
    with pytest.raises(MachineError, match="activation word address 512"):
        run(program)


def test_progress_is_told_the_cycles():
    seen = []
    result = CycleEngine().run(random_program(1), {}, progress=seen.append)
    assert seen == [result.cycles]


def test_union_joins_what_overlaps_or_touches():
    assert union([(5, 6), (0, 2), (3, 3), (8, 7), (6, 9)]) == [(0, 3), (5, 9)]
    assert length([(0, 3), (5, 9)]) == 9
