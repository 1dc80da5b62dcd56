import random

import pytest

from twillcore.config import PRESETS
from twillcore.hw.dispatch import Dispatch
from twillcore.isa import ISA, Cause, Engine, Instruction, Opcode
from twillcore.sim.bench import simulate

TINY = PRESETS["tiny"]
WHOLE = TINY.replace(tap_depth=64, lut_columns=8, lut_weight_depth=256)  # has every instruction
WORK = [row for row in ISA.values() if row.engine is not None]


def instruction(opcode, wait=0, signal=0):
    operands = {field.name: 0 for field in ISA[opcode].operands}
    return Instruction(opcode, operands, wait, signal).encode()


def outputs(ctx, dut):
    return {e for e in Engine if hasattr(dut, f"o_{e.name.lower()}")
            and ctx.get(dut.output(e).valid)}  # fmt: skip


@pytest.mark.parametrize("row", WORK, ids=lambda row: row.opcode.name)
def test_an_instruction_reaches_the_queue_of_its_engine_only(row):
    dut = Dispatch(WHOLE)
    rng = random.Random(1)

    async def testbench(ctx):
        ctx.set(dut.enable, 1)
        ctx.set(dut.i.valid, 1)
        o = dut.output(row.engine)
        for index in range(20):
            operands = {field.name: rng.randint(field.low, field.high) for field in row.operands}
            word = Instruction(row.opcode, operands, rng.getrandbits(5), rng.getrandbits(5))
            ctx.set(dut.i.payload, {"word": word.encode(), "index": index})
            assert ctx.get(dut.i.ready)  # the one before it leaves in this cycle
            await ctx.tick()
            ctx.set(dut.i.payload, {"word": rng.getrandbits(256), "index": 77})
            ctx.set(o.ready, 0)
            for _ in range(rng.randrange(3)):  # the queue is full
                assert not ctx.get(dut.i.ready)
                await ctx.tick()
            assert outputs(ctx, dut) == {row.engine}
            assert ctx.get(o.p.word) == word.encode()
            assert ctx.get(o.p.index) == index
            assert not ctx.get(dut.error.valid)
            assert not ctx.get(dut.halt)
            ctx.set(o.ready, 1)
        ctx.set(dut.i.valid, 0)
        await ctx.tick()
        assert outputs(ctx, dut) == set()

    simulate(dut, testbench)


def illegal_words():
    yield "unknown opcode", 0xF, TINY
    for row in ISA.values():
        yield f"reserved bit of {row.opcode.name}", instruction(row.opcode) | 1 << 255, WHOLE
        yield (
            f"first reserved bit of {row.opcode.name}",
            (instruction(row.opcode) | 1 << row.width),
            WHOLE,
        )
    for opcode in (Opcode.LUT_GEMM, Opcode.WINDOW, Opcode.LUT_WINDOW):
        yield f"{opcode.name} where there is none", instruction(opcode), TINY
    yield "token of an engine that is not there", instruction(Opcode.LOAD, wait=1 << 5), TINY
    yield "token for an engine that is not there", instruction(Opcode.LOAD, signal=1 << 5), TINY
    no_attention = TINY.replace(operand_depth=0)
    yield "MOVE without an operand memory", instruction(Opcode.MOVE), no_attention
    yield (
        "token of MOVE without one",
        (instruction(Opcode.GEMM, wait=1 << Engine.MOVE)),
        no_attention,
    )
    yield (
        "LAYER_NORM without a norm memory",
        (instruction(Opcode.LAYER_NORM)),
        TINY.replace(norm_depth=0),
    )


ILLEGAL = list(illegal_words())


@pytest.mark.parametrize(("word", "config"), [case[1:] for case in ILLEGAL],
                         ids=[case[0] for case in ILLEGAL])  # fmt: skip
def test_illegal_instructions_stop_the_machine(word, config):
    dut = Dispatch(config)

    async def testbench(ctx):
        ctx.set(dut.enable, 1)
        ctx.set(dut.idle, 1)
        ctx.set(dut.i.payload, {"word": word, "index": 33})
        await ctx.tick()
        assert not ctx.get(dut.error.valid)
        ctx.set(dut.i.valid, 1)
        await ctx.tick()
        ctx.set(dut.i.payload, {"word": instruction(Opcode.GEMM), "index": 34})
        for _ in range(3):
            assert ctx.get(dut.error.valid)
            assert ctx.get(dut.error.cause) == Cause.ILLEGAL_INSTRUCTION
            assert ctx.get(dut.error.index) == 33
            assert outputs(ctx, dut) == set()
            assert not ctx.get(dut.i.ready)
            assert not ctx.get(dut.halt)
            await ctx.tick()

    simulate(dut, testbench)


def test_halt_waits_for_everybody():
    dut = Dispatch(TINY)

    async def testbench(ctx):
        ctx.set(dut.enable, 1)
        ctx.set(dut.i.valid, 1)
        ctx.set(dut.i.payload, {"word": instruction(Opcode.HALT), "index": 1})
        assert ctx.get(dut.i.ready)
        await ctx.tick()
        assert not ctx.get(dut.halt)
        assert not ctx.get(dut.i.ready)
        ctx.set(dut.idle, 1)
        assert ctx.get(dut.halt)
        assert not ctx.get(dut.i.ready)  # nothing behind it
        ctx.set(dut.enable, 0)
        assert not ctx.get(dut.halt)

    simulate(dut, testbench)


@pytest.mark.parametrize("row", ISA.values(), ids=lambda row: row.opcode.name)
def test_nothing_moves_while_the_machine_stands(row):
    dut = Dispatch(WHOLE)

    async def testbench(ctx):
        ctx.set(dut.idle, 1)
        if row.engine is not None:
            ctx.set(dut.output(row.engine).ready, 1)
        ctx.set(dut.i.valid, 1)
        ctx.set(dut.i.payload, {"word": instruction(row.opcode), "index": 1})
        await ctx.tick()
        assert not ctx.get(dut.i.ready)
        assert outputs(ctx, dut) == set()
        assert not ctx.get(dut.halt)
        assert not ctx.get(dut.error.valid)

    simulate(dut, testbench)
