"""The timing models of FETCH, LOAD and STORE against the RTL, to the cycle."""

import random

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring

from twillcore.config import PRESETS
from twillcore.dram import Dram
from twillcore.hw.fetch import Fetch
from twillcore.hw.load import LoadEngine, depth_rows
from twillcore.hw.read_port import ReadPort
from twillcore.hw.store import StoreEngine
from twillcore.isa import ENTRY_MEMORIES, Instruction, Memory, Opcode, WeightFormat
from twillcore.sim.bench import simulate
from twillcore.sim.bench_dram import BenchDram
from twillcore.sim.read_path import ReadPath
from twillcore.sim.timing_load import LoadTiming
from twillcore.sim.timing_store import StoreTiming

TINY = PRESETS["tiny"].replace(tap_depth=64, lut_columns=8, lut_weight_depth=256)
EIGHT = TINY.replace(name="eight", lanes=8)  # 8 beats per activation word
NARROW = TINY.replace(name="narrow", axi_data_bits=32, axi_burst_beats=5, lanes=2)
SHORT = TINY.replace(name="short", axi_data_bits=128, axi_burst_beats=2, lanes=2, dsp_columns=16)
WIDEST = TINY.replace(name="widest", axi_data_bits=512, dsp_columns=64, lut_columns=64, lanes=8)
CONFIGS = [TINY, EIGHT, NARROW, SHORT, WIDEST]
DRAMS = [
    Dram(), Dram(beat_cycles=2), Dram(beat_cycles=3), Dram(latency=1), Dram(latency=17),
    Dram(90, 1, 2), Dram(3, 2, 1),
]  # fmt: skip
PAIRS = [
    pytest.param(config, dram, id=f"{config.name}-{dram}")
    for i, config in enumerate(CONFIGS)
    for j, dram in enumerate(DRAMS)
    if (i + j) % 2 == 0
]
MEMORY_BYTES = 1 << 16


def transfer(rng, config, opcode, largest):
    """A legal LOAD or STORE; content does not matter here, so runs may overlap."""
    present = [memory for memory in Memory if depth_rows(memory, config)]
    memory = rng.choice(present if opcode == Opcode.LOAD else [0, 1])
    entries = config.entries_per_beat if memory in ENTRY_MEMORIES else 1
    count = rng.randrange(1, largest + 1) * entries
    operands = {"memory": memory, "runs": rng.choice([1, 1, 2, 5]), "local": 0, "local_stride": 0}
    if opcode == Opcode.LOAD:
        format, beats = WeightFormat.DENSE, 0
        if memory == Memory.WEIGHT:
            format = rng.choice(list(WeightFormat))
            beats = rng.randrange(1, config.block + 1)
            count *= beats
        operands |= {"format": format, "beats": beats}
    count = min(count, depth_rows(Memory(memory), config) * entries)
    if opcode == Opcode.LOAD and operands["format"] == WeightFormat.BITMAP:
        count -= count % operands["beats"]
    addresses = 1 << 14, 1 << 12
    dram, stride = (rng.randrange(a // config.axi_bytes) * config.axi_bytes for a in addresses)
    return Instruction(opcode, operands | {"count": count, "dram": dram, "dram_stride": stride})


def offers(rng, count, gap):
    """Cycles from which each of ``count`` things may happen."""
    cycle, result = 4, []  # not before the first word can have been fetched
    for _ in range(count):
        cycle += rng.choice([0, 0, rng.randrange(gap)])
        result.append(cycle)
    return result


class ReadSide(wiring.Component):
    """FETCH and LOAD on their port, and the frame counter: 0 in the cycle after ``start``."""

    def __init__(self, config):
        self.fetch, self.load = Fetch(config), LoadEngine(config)
        self.port = ReadPort(config)
        super().__init__({})

    def elaborate(self, platform):
        m = Module()
        m.submodules.fetch, m.submodules.load, m.submodules.port = self.fetch, self.load, self.port
        wiring.connect(m, self.fetch.read, self.port.fetch)
        wiring.connect(m, self.load.read, self.port.load)
        phase = Signal(3)
        m.d.sync += phase.eq(phase + 1)
        m.d.comb += self.load.phase.eq(phase - 1)
        return m


def rtl_reads(config, dram, instructions, load_offers, word_offers):
    """Return starts and ends of LOADs and when words left, in cycles after the start of FETCH."""
    dut = ReadSide(config)
    memory = bytearray(b"\x11" * MEMORY_BYTES)  # no word is HALT
    starts, ends, words = [], [], []

    async def drive(ctx):
        ctx.set(dut.fetch.start, 1)
        await ctx.tick()
        ctx.set(dut.fetch.start, 0)
        cycle = 0
        while len(ends) < len(instructions) or len(words) < len(word_offers):
            number = len(starts)
            offered = number < len(instructions) and cycle >= load_offers[number]
            if offered:
                word = {"word": instructions[number].encode(), "index": number}
                ctx.set(dut.load.instruction.payload, word)
            ctx.set(dut.load.instruction.valid, offered)
            number = len(words)
            takes = number < len(word_offers) and cycle >= word_offers[number]
            ctx.set(dut.fetch.o.ready, takes)
            _, _, ready, retire, valid, error = await ctx.tick().sample(
                dut.load.instruction.ready, dut.load.retire, dut.fetch.o.valid, dut.load.error.valid
            )
            assert not error
            if offered and ready:
                starts.append(cycle)
            if retire:
                ends.append(cycle)
            if takes and valid:
                words.append(cycle)
            cycle += 1

    memory = BenchDram(dram, memory)
    simulate(dut, drive, background=(memory.serve_reads(dut.port.memory),))
    return starts, ends, words


def model_reads(config, dram, instructions, load_offers, word_offers):
    """Return what :func:`rtl_reads` does, by the models."""
    load = LoadTiming(config)
    path = ReadPath(config, dram, load)
    starts, words = [], []
    next_start = next_word = None
    while len(load.retired) < len(instructions) or len(words) < len(word_offers):
        cycle = path.next_cycle
        if cycle == next_start:
            path.wake(load.accept(instructions[len(starts)].operands, cycle))
            starts.append(cycle)
            next_start = None
        if cycle == next_word:
            path.take_word(cycle)
            words.append(cycle)
            next_word = None
        path.step(cycle)
        if next_start is None and len(starts) < len(instructions) and load.earliest is not None:
            next_start = max(load.earliest, load_offers[len(starts)], cycle + 1)
            path.wake(next_start)
        number = len(words)
        if next_word is None and number < len(word_offers) and number < len(path.words):
            next_word = max(path.words[number], word_offers[number], cycle + 1)
            path.wake(next_word)
    return starts, load.retired, words


@pytest.mark.parametrize(("config", "dram"), PAIRS)
def test_reads(config, dram):
    rng = random.Random(f"{config.name} {dram}")
    largest = rng.choice([2, 9])
    instructions = [transfer(rng, config, Opcode.LOAD, largest) for _ in range(10)]
    load_offers = offers(rng, len(instructions), rng.choice([1, 60]))
    word_offers = offers(rng, 24, rng.choice([1, 40]))
    arguments = config, dram, instructions, load_offers, word_offers
    assert model_reads(*arguments) == rtl_reads(*arguments)


def rtl_writes(config, dram, instructions, store_offers):
    """Return starts and ends of STOREs."""
    dut = StoreEngine(config)
    starts, ends = [], []

    async def drive(ctx):
        cycle = 0
        while len(ends) < len(instructions):
            number = len(starts)
            offered = number < len(instructions) and cycle >= store_offers[number]
            if offered:
                word = {"word": instructions[number].encode(), "index": number}
                ctx.set(dut.instruction.payload, word)
            ctx.set(dut.instruction.valid, offered)
            ctx.set(dut.phase, cycle % 8)
            _, _, ready, retire, error = await ctx.tick().sample(
                dut.instruction.ready, dut.retire, dut.error.valid
            )
            assert not error
            if offered and ready:
                starts.append(cycle)
            if retire:
                ends.append(cycle)
            cycle += 1

    memory = BenchDram(dram, bytearray(MEMORY_BYTES))
    simulate(dut, drive, background=(memory.serve_writes(dut.write),))
    return starts, ends


def model_writes(config, dram, instructions, store_offers):
    """Return what :func:`rtl_writes` does, by the model."""
    store = StoreTiming(config, dram)
    starts, ends = [], []
    for instruction, offer in zip(instructions, store_offers, strict=True):
        starts.append(max(store.earliest, offer, starts[-1] + 1 if starts else 0))
        ends.append(store.accept(instruction.operands, starts[-1]))
    return starts, ends


@pytest.mark.parametrize(("config", "dram"), PAIRS)
def test_writes(config, dram):
    rng = random.Random(f"{config.name} {dram}")
    largest = rng.choice([2, 9])
    instructions = [transfer(rng, config, Opcode.STORE, largest) for _ in range(10)]
    arguments = config, dram, instructions, offers(rng, 10, rng.choice([1, 200]))
    assert model_writes(*arguments) == rtl_writes(*arguments)
