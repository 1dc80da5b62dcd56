import pytest

from twillcore.config import FRAME_CYCLES
from twillcore.hw.run_control import SOURCES, RunControl
from twillcore.isa import Cause, Engine
from twillcore.registers import NO_ENGINE
from twillcore.sim.bench import idle, simulate


def test_absent_engines_report_no_errors():
    dut = RunControl([Engine.LOAD, Engine.MOVE])
    assert not hasattr(dut, "error_gemm")

    async def testbench(ctx):
        await start(ctx, dut)
        ctx.set(dut.error_move.valid, 1)
        await idle(ctx, 2)
        assert ctx.get(dut.running)
        await ctx.tick()
        assert not ctx.get(dut.running)
        assert ctx.get(dut.engine) == Engine.MOVE

    simulate(dut, testbench)


async def start(ctx, dut):
    """Begin a program; returns in cycle 0."""
    ctx.set(dut.start, 1)
    assert ctx.get(dut.begin)
    await ctx.tick()
    ctx.set(dut.start, 0)


@pytest.mark.parametrize("before", range(FRAME_CYCLES))
def test_cycle_0_is_the_first_of_a_frame(before):
    dut = RunControl()

    async def testbench(ctx):
        await idle(ctx, before)
        await start(ctx, dut)
        for cycle in range(20):
            assert ctx.get(dut.running)
            assert ctx.get(dut.cycles) == cycle
            assert ctx.get(dut.phase) == cycle % FRAME_CYCLES
            assert ctx.get(dut.slots) == 1 << cycle % FRAME_CYCLES
            await ctx.tick()

    simulate(dut, testbench)


def test_a_start_while_a_program_runs_is_ignored():
    dut = RunControl()

    async def testbench(ctx):
        await start(ctx, dut)
        await idle(ctx, 3)
        ctx.set(dut.start, 1)
        assert not ctx.get(dut.begin)
        await ctx.tick()
        assert ctx.get(dut.cycles) == 4

    simulate(dut, testbench)


def test_halt_ends_a_program_and_cycles_stand():
    dut = RunControl()

    async def testbench(ctx):
        await start(ctx, dut)
        await idle(ctx, 9)
        ctx.set(dut.halt, 1)
        await ctx.tick()
        ctx.set(dut.halt, 0)
        for _ in range(3):
            assert (ctx.get(dut.running), ctx.get(dut.done), ctx.get(dut.error)) == (0, 1, 0)
            assert ctx.get(dut.cycles) == 10  # cycles 0 to 9
            await ctx.tick()
        await start(ctx, dut)
        assert (ctx.get(dut.running), ctx.get(dut.done), ctx.get(dut.cycles)) == (1, 0, 0)

    simulate(dut, testbench)


@pytest.mark.parametrize("number", range(len(SOURCES)))
@pytest.mark.parametrize("halt", [None, 0, 1])
def test_the_first_of_several_errors_is_kept(number, halt):
    """HALT is in the cycle of the error, or of its port, or does not come."""
    dut = RunControl()
    sources = list(SOURCES)

    async def testbench(ctx):
        await start(ctx, dut)
        ctx.set(dut.halt, halt == 0)
        await ctx.tick()
        for other in range(number, len(SOURCES)):
            error = getattr(dut, f"error_{sources[other]}")
            ctx.set(error.valid, 1)
            ctx.set(error.cause, Cause.AXI_READ_ERROR if other == number else Cause.WATCHDOG)
            ctx.set(error.index, 100 + other)
        ctx.set(dut.halt, halt == 1)
        await ctx.tick()
        ctx.set(getattr(dut, f"error_{sources[0]}").valid, 1)  # too late
        ctx.set(getattr(dut, f"error_{sources[0]}").index, 200)
        await idle(ctx, 3)
        assert (ctx.get(dut.running), ctx.get(dut.done), ctx.get(dut.error)) == (0, 0, 1)
        assert ctx.get(dut.cause) == Cause.AXI_READ_ERROR
        assert ctx.get(dut.index) == 100 + number
        assert ctx.get(dut.engine) == (number if number < len(Engine) else NO_ENGINE)

    simulate(dut, testbench)


@pytest.mark.parametrize("late", [2, 3])
def test_errors_after_halt_do_not_count(late):
    dut = RunControl()

    async def testbench(ctx):
        await start(ctx, dut)
        ctx.set(dut.halt, 1)
        await ctx.tick()
        ctx.set(dut.halt, 0)
        await idle(ctx, late - 1)
        ctx.set(dut.error_load.valid, 1)
        await idle(ctx, 4)
        assert (ctx.get(dut.done), ctx.get(dut.error)) == (1, 0)

    simulate(dut, testbench)


@pytest.mark.parametrize("limit", [1, 10])
def test_the_watchdog_counts_cycles_without_progress(limit):
    dut = RunControl()

    async def testbench(ctx):
        ctx.set(dut.watchdog, limit)
        ctx.set(dut.oldest_index, 77)
        ctx.set(dut.oldest_engine, Engine.STORE)
        await idle(ctx, 30)  # that nothing moves before the start does not count
        ctx.set(dut.progress, 1)
        await start(ctx, dut)
        await idle(ctx, 30)
        ctx.set(dut.progress, 0)
        for _ in range(limit + 1):
            assert ctx.get(dut.running)
            await ctx.tick()
        await ctx.tick()
        assert not ctx.get(dut.running)
        assert (ctx.get(dut.cause), ctx.get(dut.index)) == (Cause.WATCHDOG, 77)
        assert ctx.get(dut.engine) == Engine.STORE

    simulate(dut, testbench)


def test_a_watchdog_of_0_never_stops_the_machine():
    dut = RunControl()

    async def testbench(ctx):
        await start(ctx, dut)
        await idle(ctx, 300)
        assert ctx.get(dut.running)

    simulate(dut, testbench)
