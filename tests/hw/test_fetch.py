import random

import pytest

from twillcore.config import PRESETS
from twillcore.dram import Dram
from twillcore.hw.fetch import Fetch
from twillcore.isa import WORD_BYTES, Cause, Opcode
from twillcore.sim.bench import get, idle, simulate
from twillcore.sim.bench_dram import BenchDram

TINY = PRESETS["tiny"]
CONFIGS = [
    TINY,
    TINY.replace(name="short", axi_data_bits=32, axi_burst_beats=5),
    TINY.replace(name="wide", axi_data_bits=256, dsp_columns=32, operand_depth=0),
    TINY.replace(name="widest", axi_data_bits=512, dsp_columns=64, lanes=8),
]
BASE, PROGRAM = 0x1000, 0x180


def program(length, rng):
    """``length`` words that are no HALT, and HALT."""
    words = [rng.getrandbits(252) << 4 | rng.randrange(1, 16) for _ in range(length)]
    return [*words, rng.getrandbits(252) << 4 | Opcode.HALT]


def memory_with(words, offset=BASE + PROGRAM, size=1 << 14):
    memory = bytearray(b"\x55" * size)
    data = b"".join(word.to_bytes(WORD_BYTES, "little") for word in words)
    memory[offset : offset + len(data)] = data
    return memory


async def start(ctx, dut, offset=PROGRAM):
    ctx.set(dut.base, BASE)
    ctx.set(dut.program, offset)
    ctx.set(dut.start, 1)
    await ctx.tick()
    ctx.set(dut.start, 0)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
@pytest.mark.parametrize("dram", [Dram(), Dram(latency=1), Dram(5, 3, 1)])
def test_words_arrive_in_order_up_to_halt_again_and_again(config, dram):
    rng = random.Random(f"{config.name} {dram}")
    programs = [program(length, rng) for length in (0, 1, 37, 6)]
    dut, memory = Fetch(config), bytearray(1 << 14)
    bench_dram = BenchDram(dram, memory)

    async def bench(ctx):
        for number, words in enumerate(programs):
            memory[:] = memory_with(words)
            await start(ctx, dut)
            for index, word in enumerate(words):
                if number % 2:
                    await idle(ctx, rng.randrange(8))
                issued = await get(ctx, dut.o)
                assert (issued.index, issued.word) == (index, word)
            for _ in range(rng.choice([0, 1, 3, 200])):  # restart while data are on their way
                assert not ctx.get(dut.o.valid)
                await ctx.tick()

    simulate(dut, bench, background=(bench_dram.serve_reads(dut.read),))


def test_stop_drops_what_is_on_its_way():
    rng = random.Random(1)
    first, second = program(30, rng), program(3, rng)
    dut = Fetch(TINY)
    memory = memory_with(first)
    memory[0x2000:] = memory_with(second, 0x2000)[0x2000:]

    async def bench(ctx):
        await start(ctx, dut)
        for word in first[:2]:
            assert (await get(ctx, dut.o)).word == word
        ctx.set(dut.stop, 1)
        await ctx.tick()
        ctx.set(dut.stop, 0)
        await start(ctx, dut, 0x1000)
        for index, word in enumerate(second):
            issued = await get(ctx, dut.o)
            assert (issued.index, issued.word) == (index, word)

    simulate(dut, bench, background=(BenchDram(Dram(), memory).serve_reads(dut.read),))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_reads_stop_when_the_buffer_is_full(config):
    dut = Fetch(config)
    dram = BenchDram(Dram(), memory_with(program(40, random.Random(2))))

    async def bench(ctx):
        await start(ctx, dut)
        await idle(ctx, 400)
        beats = Fetch.BUFFER_WORDS * WORD_BYTES // config.axi_bytes
        assert sum(read[3] for read in dram.reads) == beats
        assert dram.reads[0][0] == 2  # start was in cycle 0
        first = [read[0] for read in dram.reads[: Dram().outstanding]]
        assert first == list(range(2, 2 + len(first)))
        for _ in range(Fetch.GROUP_WORDS):
            await get(ctx, dut.o)
        await idle(ctx, 100)
        assert sum(read[3] for read in dram.reads) == beats * 5 // 4

    simulate(dut, bench, background=(dram.serve_reads(dut.read),))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_read_error_counts_only_when_its_word_is_reached(config):
    words = program(9, random.Random(3))
    dut = Fetch(config)
    behind = BASE + PROGRAM + 12 * WORD_BYTES  # not in the beat of HALT, even of 512 bits
    dram = BenchDram(Dram(), memory_with(words), read_errors={behind})
    errors = []

    async def watch(ctx):
        while True:
            _, _, valid, cause, index = await ctx.tick().sample(
                dut.error.valid, dut.error.cause, dut.error.index
            )
            if valid:
                errors.append((Cause(cause), index))

    async def bench(ctx):
        await start(ctx, dut)
        for word in words:
            assert (await get(ctx, dut.o)).word == word
        await idle(ctx, 100)
        assert errors == []
        dram.read_errors = {BASE + PROGRAM + 6 * WORD_BYTES + 5}
        await start(ctx, dut)
        for word in words[:6]:
            assert (await get(ctx, dut.o)).word == word
        ctx.set(dut.o.ready, 1)
        for _ in range(100):
            await ctx.tick()
            assert not ctx.get(dut.o.valid)
        assert errors == [(Cause.AXI_READ_ERROR, 6)]

    simulate(dut, bench, background=(watch, dram.serve_reads(dut.read)))
