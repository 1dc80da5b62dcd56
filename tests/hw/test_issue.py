import random
from collections import deque

import pytest

from twillcore.config import PRESETS
from twillcore.hw.issue import Issue
from twillcore.hw.layouts import INDEX_BITS
from twillcore.isa import TOKEN_COUNTER_BITS, Engine, Instruction, Opcode
from twillcore.sim.bench import idle, simulate

TINY = PRESETS["tiny"]
NONE = (1 << INDEX_BITS) - 1  # oldest_index when all is finished


def word(wait=0, signal=0):
    return Instruction(Opcode.HALT, {}, wait, signal).encode()


def offer(ctx, dut, index, **masks):
    ctx.set(dut.i.payload, {"word": word(**masks), "index": index})
    ctx.set(dut.i.valid, 1)


def test_an_instruction_is_offered_two_cycles_later():
    dut = Issue(TINY)

    async def testbench(ctx):
        ctx.set(dut.enable, 1)
        offer(ctx, dut, 7)
        assert not ctx.get(dut.o.valid)
        await ctx.tick()
        ctx.set(dut.i.valid, 0)
        assert not ctx.get(dut.o.valid)
        assert not ctx.get(dut.idle)
        assert ctx.get(dut.oldest_index) == NONE
        await ctx.tick()
        assert ctx.get(dut.o.valid)
        assert ctx.get(dut.o.p.index) == 7
        assert ctx.get(dut.oldest_index) == 7

    simulate(dut, testbench)


def test_nothing_is_offered_unless_enabled():
    dut = Issue(TINY)

    async def testbench(ctx):
        offer(ctx, dut, 0)
        for _ in range(4):
            await ctx.tick()
            assert not ctx.get(dut.o.valid)

    simulate(dut, testbench)


def test_the_queue_holds_queue_depth_instructions():
    dut = Issue(TINY)

    async def testbench(ctx):
        ctx.set(dut.enable, 1)
        for index in range(TINY.queue_depth):
            offer(ctx, dut, index)
            assert ctx.get(dut.i.ready)
            await ctx.tick()
        assert not ctx.get(dut.i.ready)
        ctx.set(dut.o.ready, 1)
        assert not ctx.get(dut.i.ready)  # room is seen in the next cycle
        await ctx.tick()
        assert ctx.get(dut.i.ready)

    simulate(dut, testbench)


@pytest.mark.parametrize("engine", Engine)
def test_a_token_given_in_one_cycle_is_taken_two_later(engine):
    dut = Issue(TINY)

    async def testbench(ctx):
        ctx.set(dut.enable, 1)
        ctx.set(dut.o.ready, 1)
        offer(ctx, dut, 0, wait=1 << engine)
        await ctx.tick()
        ctx.set(dut.i.valid, 0)
        await idle(ctx, 3)
        assert not ctx.get(dut.o.valid)
        assert ctx.get(dut.missing) == 1 << engine
        ctx.set(dut.given, 1 << engine)
        assert not ctx.get(dut.o.valid)
        await ctx.tick()
        ctx.set(dut.given, 0)
        assert ctx.get(dut.missing) == 1 << engine
        await ctx.tick()
        assert ctx.get(dut.missing) == 0
        assert ctx.get(dut.o.valid)
        await ctx.tick()
        assert not ctx.get(dut.o.valid)
        offer(ctx, dut, 1, wait=1 << engine)  # the token is gone
        await idle(ctx, 2)
        assert ctx.get(dut.missing) == 1 << engine

    simulate(dut, testbench)


def test_the_only_instruction_is_somewhere_until_it_retires():
    dut = Issue(TINY)

    async def testbench(ctx):
        ctx.set(dut.enable, 1)
        ctx.set(dut.o.ready, 1)
        offer(ctx, dut, 7, signal=1 << Engine.STORE)
        await ctx.tick()
        ctx.set(dut.i.valid, 0)
        for cycle in range(4):  # head of the queue, offered, on its way, in flight
            assert not ctx.get(dut.idle)
            assert ctx.get(dut.o.valid) == (cycle == 1)
            assert ctx.get(dut.oldest_index) == (7 if cycle else NONE)
            ctx.set(dut.retire, cycle == 3)
            assert ctx.get(dut.give) == (1 << Engine.STORE if cycle == 3 else 0)
            await ctx.tick()
        ctx.set(dut.retire, 0)
        assert ctx.get(dut.idle)

    simulate(dut, testbench)


def test_random_traffic_against_a_model():
    """Instructions leave in order with their tokens, and each retirement gives its own mask."""
    dut = Issue(TINY)
    rng = random.Random(5)
    masks = [(rng.getrandbits(5) & rng.getrandbits(5), rng.getrandbits(5)) for _ in range(300)]

    async def testbench(ctx):
        ctx.set(dut.enable, 1)
        tokens = dict.fromkeys(Engine, 0)
        sent = retired = arriving = 0
        oldest = NONE
        queued, flying = deque(), deque()
        start_cycles = {}
        was_head = False  # the head of the queue was that already in the cycle before
        cycles = 0
        while retired < len(masks):
            cycles += 1
            assert cycles < 20_000
            can_start = bool(queued) and len(flying) < 32 and all(
                tokens[e] for e in Engine if masks[queued[0]][0] >> e & 1
            )  # fmt: skip
            given = rng.getrandbits(5) & rng.getrandbits(5)
            ready, send = rng.random() < 0.6, sent < len(masks) and rng.random() < 0.6
            retire = bool(flying) and start_cycles[flying[0]] + 2 <= cycles and rng.random() < 0.4
            ctx.set(dut.given, given)
            ctx.set(dut.o.ready, ready)
            ctx.set(dut.retire, retire)
            ctx.set(dut.i.valid, send)
            if send:
                wait, signal = masks[sent]
                ctx.set(dut.i.payload, {"word": word(wait, signal), "index": sent})

            assert ctx.get(dut.o.valid) == (can_start and was_head)
            assert ctx.get(dut.i.ready) == (len(queued) < TINY.queue_depth)
            assert ctx.get(dut.idle) == (not queued and not flying)
            assert ctx.get(dut.give) == (masks[flying[0]][1] if retire else 0)
            assert ctx.get(dut.oldest_index) == oldest
            oldest = next(iter([*flying, *queued]), NONE)

            accepted = send and len(queued) < TINY.queue_depth
            was_head = bool(queued)
            if ctx.get(dut.o.valid) and ready:
                was_head = False
                assert ctx.get(dut.o.p.index) == queued[0]
                for e in Engine:
                    tokens[e] -= masks[queued[0]][0] >> e & 1
                start_cycles[queued[0]] = cycles
                flying.append(queued.popleft())
            if retire:
                flying.popleft()
                retired += 1
            if accepted:
                queued.append(sent)
                sent += 1
            for e in Engine:
                tokens[e] += arriving >> e & 1
            arriving = given
            await ctx.tick()

    simulate(dut, testbench)


def test_a_token_too_many_is_reported():
    dut = Issue(TINY)

    async def testbench(ctx):
        ctx.set(dut.given, 1 << Engine.GEMM)
        for _ in range((1 << TOKEN_COUNTER_BITS) + 1):
            assert ctx.get(dut.overflow) == 0
            await ctx.tick()
        assert ctx.get(dut.overflow) == 1 << Engine.GEMM

    simulate(dut, testbench)
