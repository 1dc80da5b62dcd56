import random

import pytest

from twillcore.config import PRESETS
from twillcore.dram import Dram
from twillcore.hw.ports import Activity
from twillcore.hw.store import StoreEngine
from twillcore.isa import Cause, Instruction, Memory, Opcode
from twillcore.sim.bench import simulate
from twillcore.sim.bench_dram import BenchDram
from twillcore.timing import SHARED_READ_CYCLES, ActivationSlot

TINY = PRESETS["tiny"]
EIGHT = TINY.replace(name="eight", lanes=8)  # 8 beats per activation word
NARROW = TINY.replace(name="narrow", axi_data_bits=32, axi_burst_beats=12, lanes=2)
WIDE = TINY.replace(
    name="wide", axi_data_bits=128, axi_burst_beats=32, block=16, dsp_columns=32, lanes=6,
    operand_depth=0,
)  # fmt: skip
MEMORY_BYTES = 1 << 16
BASE = 0x1000


def store(**operands):
    defaults = {
        "memory": Memory.ACTIVATION, "dram": 0, "dram_stride": 0, "local": 0, "local_stride": 0,
        "count": 4, "runs": 1,
    }  # fmt: skip
    return Instruction(Opcode.STORE, defaults | operands)


def word_bytes(instruction, config):
    return config.word_bytes << (instruction["memory"] == Memory.WIDE)


def random_store(rng, config, largest=12):
    """Any legal STORE of at most ``largest`` words per run."""
    memory = rng.choice([Memory.ACTIVATION, Memory.WIDE])
    depth = config.wide_depth if memory == Memory.WIDE else config.activation_depth
    count, runs = rng.randrange(1, largest + 1), rng.choice([1, 1, 2, 3])
    local_stride = rng.randrange(2 * count)
    local = rng.randrange(depth - (runs - 1) * local_stride - count + 1)
    size = count * config.word_bytes << (memory == Memory.WIDE)
    dram_stride = (size // config.axi_bytes + rng.randrange(8)) * config.axi_bytes
    end = MEMORY_BYTES - BASE - (runs - 1) * dram_stride - size
    return store(
        memory=memory, count=count, runs=runs, local=local, local_stride=local_stride,
        dram=rng.randrange(end // config.axi_bytes + 1) * config.axi_bytes,
        dram_stride=dram_stride,
    )  # fmt: skip


class Bench:
    """A STORE engine between random memories and a DRAM, and a record of what it does."""

    def __init__(self, config, seed=0, dram=None):
        rng = random.Random(seed)
        self.config, self.dut = config, StoreEngine(config)
        self.words = {
            Memory.ACTIVATION: [
                rng.randbytes(config.word_bytes) for _ in range(config.activation_depth)
            ],
            Memory.WIDE: [rng.randbytes(2 * config.word_bytes) for _ in range(config.wide_depth)],
        }
        self.dram = BenchDram(dram or Dram(), bytearray(MEMORY_BYTES))
        self.starts, self.ends, self.errors, self.beats = [], [], [], []

    def expected(self, instructions):
        memory = bytearray(MEMORY_BYTES)
        for instruction in instructions:
            size = word_bytes(instruction, self.config)
            for run in range(instruction["runs"]):
                at = BASE + instruction["dram"] + run * instruction["dram_stride"]
                first = instruction["local"] + run * instruction["local_stride"]
                words = self.words[Memory(instruction["memory"])]
                data = b"".join(words[first : first + instruction["count"]])
                memory[at : at + size * instruction["count"]] = data
        return memory

    def run(self, instructions, *, until_error=False, timeout=20_000):
        dut = self.dut
        ports = {Memory.ACTIVATION: dut.activation_read, Memory.WIDE: dut.wide_read}

        async def drive(ctx):
            ctx.set(dut.base, BASE)
            cycle, queue, done = 0, list(enumerate(instructions)), False
            under_way = dict.fromkeys(ports, [None] * (SHARED_READ_CYCLES - 1))
            while not done:
                if queue:
                    index, instruction = queue[0]
                    ctx.set(dut.instruction.payload, {"word": instruction.encode(), "index": index})
                ctx.set(dut.instruction.valid, bool(queue))
                ctx.set(dut.phase, cycle % 8)
                (
                    _, _, ready, retire, activity, wvalid, wready, error, cause, index, *reads,
                ) = await ctx.tick().sample(
                    dut.instruction.ready, dut.retire, dut.activity, dut.write.wvalid,
                    dut.write.wready, dut.error.valid, dut.error.cause, dut.error.index,
                    *(s for port in ports.values() for s in (port.enable, port.address)),
                )  # fmt: skip
                if queue and ready:
                    self.starts.append(cycle)
                    queue.pop(0)
                if retire:
                    self.ends.append(cycle)
                if wvalid and wready:
                    self.beats.append(cycle)
                if error:
                    self.errors.append((Cause(cause), index))
                assert (activity == Activity.BUSY) == bool(wvalid and wready)
                # The memories: data stand SHARED_READ_CYCLES after an enable, for one cycle.
                for (memory, port), enable, address in zip(
                    ports.items(), reads[::2], reads[1::2], strict=True
                ):
                    assert not enable or cycle % 8 == ActivationSlot.STORE_READ
                    read = self.words[memory][address] if enable else None
                    data, *under_way[memory] = *under_way[memory], read
                    if data is None:
                        size = word_bytes({"memory": memory}, self.config)
                        data = random.Random(cycle).randbytes(size)
                    ctx.set(port.data.as_value(), int.from_bytes(data, "little"))
                done = len(self.ends) == len(instructions) or (until_error and self.errors)
                cycle += 1

        simulate(dut, drive, timeout=timeout, background=(self.dram.serve_writes(dut.write),))


@pytest.mark.parametrize("config", [TINY, EIGHT, NARROW, WIDE], ids=lambda c: c.name)
@pytest.mark.parametrize("dram", [Dram(), Dram(latency=1, beat_cycles=3)])
def test_random_stores_write_what_the_memories_hold(config, dram):
    rng = random.Random(f"{config.name} {dram}")
    instructions = [random_store(rng, config) for _ in range(12)]
    bench = Bench(config, dram=dram)
    bench.run(instructions)
    assert bench.dram.memory == bench.expected(instructions)
    assert bench.errors == []


def test_long_words_stream_without_a_gap():
    bench = Bench(EIGHT)
    bench.run([store(count=16), store(count=16, dram=4096)])
    assert bench.beats == list(range(bench.beats[0], bench.beats[0] + 2 * 16 * 8))


def test_short_words_take_a_frame_each():
    bench = Bench(TINY)
    bench.run([store(count=16)])
    assert bench.beats[-1] - bench.beats[0] == 15 * 8 + 3


def test_latency_of_the_first_beat():
    bench = Bench(TINY)
    bench.run([store(count=1)])
    (start,), (end,) = bench.starts, bench.ends
    slot = start + 3 + (ActivationSlot.STORE_READ - start - 3) % 8
    assert bench.dram.writes == [(start + 6, 0, BASE, 4)]
    assert bench.beats[0] == slot + SHARED_READ_CYCLES + 3
    assert end == bench.beats[-1] + Dram().latency


@pytest.mark.parametrize(
    "operands",
    [
        {"memory": Memory.WEIGHT}, {"memory": 7}, {"dram": 4}, {"dram_stride": 12}, {"count": 0},
        {"runs": 0},
    ],
    ids=str,
)  # fmt: skip
def test_illegal_operands_stop(operands):
    bench = Bench(TINY)
    bench.run([store(), store(**operands)], until_error=True)
    assert bench.errors == [(Cause.ILLEGAL_INSTRUCTION, 1)]


@pytest.mark.parametrize(("memory", "depth"), [(Memory.ACTIVATION, 512), (Memory.WIDE, 256)])
def test_the_last_word_is_the_last(memory, depth):
    good = store(memory=memory, local=depth - 5, count=2, runs=2, local_stride=3)
    bad = store(memory=memory, local=depth - 4, count=2, runs=2, local_stride=3)
    bench = Bench(TINY)
    bench.run([good, bad], until_error=True)
    assert bench.errors == [(Cause.ADDRESS_OUT_OF_RANGE, 1)]
    assert len(bench.ends) <= 1


def test_write_error_names_its_instruction():
    bench = Bench(TINY)
    bench.dram.write_errors = {BASE + 4096 + 130}
    bench.run([store(), store(count=32, dram=4096 - 64)], until_error=True)
    assert bench.errors == [(Cause.AXI_WRITE_ERROR, 1)]
