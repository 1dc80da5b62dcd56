import random

import pytest
from amaranth.lib import data

from twillcore.config import FRAME_CYCLES, PRESETS
from twillcore.hw.activation_memory import READERS, WRITERS, ActivationMemory
from twillcore.hw.parameter_memory import ParameterMemory
from twillcore.hw.two_port_memory import TwoPortMemory
from twillcore.hw.wide_memory import WideMemory
from twillcore.sim.bench import simulate
from twillcore.timing import (
    SHARED_READ_CYCLES,
    ActivationSlot,
    WideReadSlot,
    WideWriteSlot,
    lut_slots,
)

TINY = PRESETS["tiny"].replace(tap_depth=0)
WINDOWS = TINY.replace(tap_depth=64)
SLOTS = WINDOWS.replace(lut_columns=8, lut_weight_depth=256, wide_depth=0, lane_depth=0,
                        norm_depth=0, operand_depth=0)  # fmt: skip
WORDS = 8  # addresses in use: few, so that reads meet writes


def put_word(ctx, port, word):
    ctx.set(port.data.as_value(), word)


async def shared_traffic(ctx, dut, slots_of_readers, slots_of_writers, rng, cores=None, both=()):
    """Enable clients at random, in their slots and outside, and check reads against a model.

    ``cores`` are the ports of GEMM cores by name; two read at once in the slots ``both`` only.
    """
    width = len(next(iter(slots_of_writers.values())).data.as_value())
    model = [0] * WORDS
    expected = [{} for _ in range(SHARED_READ_CYCLES + 1)]  # on the ports, in this cycle and later
    for cycle in range(600):
        phase = cycle % FRAME_CYCLES
        ctx.set(dut.slots, 1 << phase)
        write = None
        for slot, port in slots_of_readers.items():
            address, enable = rng.randrange(WORDS), rng.random() < 0.7
            ctx.set(port.address, address)
            ctx.set(port.enable, enable)
            if enable and slot == phase:
                expected[SHARED_READ_CYCLES][slot] = model[address]
        for slot, port in slots_of_writers.items():
            address, enable, word = rng.randrange(WORDS), rng.random() < 0.7, rng.getrandbits(width)
            ctx.set(port.address, address)
            ctx.set(port.enable, enable)
            put_word(ctx, port, word)
            if enable and slot == phase:
                write = address, word
        reads = False
        for name, core in (cores or {}).items():
            address, enable = rng.randrange(WORDS), rng.random() < 0.7
            enable &= not reads or phase in both
            reads |= enable
            ctx.set(core.address, address)
            ctx.set(core.enable, enable)
            if enable:
                expected[1][name] = model[address]
            if hasattr(core, "second"):
                second, lanes = rng.randrange(WORDS), rng.getrandbits(len(core.uses_second))
                ctx.set(core.second, second)
                ctx.set(core.uses_second, lanes)
                if enable:
                    bits = width // len(core.uses_second)
                    mask = sum(
                        ((1 << bits) - 1) << bits * lane
                        for lane in range(len(core.uses_second))
                        if lanes >> lane & 1
                    )
                    expected[1][name] = model[address] & ~mask | model[second] & mask
        for slot, word in expected.pop(0).items():
            port = cores[slot] if slot in (cores or {}) else slots_of_readers[slot]
            assert ctx.get(port.data.as_value()) == word, slot
        expected.append({})
        if write is not None:
            model[write[0]] = write[1]
        await ctx.tick()


@pytest.mark.parametrize("config", [TINY, WINDOWS], ids=["words", "lanes"])
def test_activation_memory_serves_every_client_in_its_slot(config):
    dut = ActivationMemory(config)

    async def testbench(ctx):
        readers = {slot: getattr(dut, slot.name.lower()) for slot in READERS}
        writers = {slot: getattr(dut, slot.name.lower()) for slot in WRITERS}
        await shared_traffic(ctx, dut, readers, writers, random.Random(1), {"gemm": dut.gemm_read})

    simulate(dut, testbench)


def test_the_lut_core_reads_beside_the_other_one_in_slots_of_absent_engines():
    slots = lut_slots(SLOTS)
    assert {slot.name for slot in slots} == {
        "VECTOR_WRITE", "VECTOR_READ_A", "VECTOR_READ_B", "MOVE_READ"
    }  # fmt: skip
    assert lut_slots(SLOTS.replace(tap_depth=0)) == lut_slots(WINDOWS) == ()
    dut = ActivationMemory(SLOTS)

    async def testbench(ctx):
        readers, writers = (
            {slot: getattr(dut, slot.name.lower()) for slot in some if slot not in slots}
            for some in (READERS, WRITERS)
        )
        cores = {"gemm": dut.gemm_read, "lut": dut.lut_read}
        await shared_traffic(ctx, dut, readers, writers, random.Random(5), cores, slots)

    simulate(dut, testbench)


def test_every_slot_of_the_activation_memory_has_a_client():
    assert {*READERS, *WRITERS} == set(ActivationSlot)


def test_wide_memory_reads_and_writes_in_the_same_cycle():
    dut = WideMemory(TINY)

    async def testbench(ctx):
        readers = {slot: getattr(dut, slot.name.lower()) for slot in WideReadSlot}
        writers = {slot: getattr(dut, slot.name.lower()) for slot in WideWriteSlot}
        await shared_traffic(ctx, dut, readers, writers, random.Random(2))

    simulate(dut, testbench)


@pytest.mark.parametrize("enable_bits", [1, 2, 4])
def test_two_port_memory_writes_the_enabled_parts(enable_bits):
    row = data.ArrayLayout(8, 4)
    dut = TwoPortMemory(16, row, 32, enable_bits)
    part = row.size // enable_bits

    async def testbench(ctx):
        rng = random.Random(3)
        model = [0] * WORDS
        for _ in range(300):
            address, enable = rng.randrange(WORDS), rng.getrandbits(enable_bits)
            word = rng.getrandbits(row.size)
            ctx.set(dut.write.address, address)
            ctx.set(dut.write.enable, enable)
            put_word(ctx, dut.write, word)
            read = rng.randrange(WORDS)
            ctx.set(dut.read.address, read)
            ctx.set(dut.read.enable, 1)
            old = model[read]
            mask = sum(((1 << part) - 1) << i * part for i in range(enable_bits) if enable >> i & 1)
            model[address] = model[address] & ~mask | word & mask
            await ctx.tick()
            assert ctx.get(dut.read.data.as_value()) == old
        ctx.set(dut.write.enable, 0)
        ctx.set(dut.read.enable, 0)
        for address in range(WORDS):  # data hold until the next read
            ctx.set(dut.read.address, address)
            await ctx.tick()
            assert ctx.get(dut.read.data.as_value()) == old

    simulate(dut, testbench)


@pytest.mark.parametrize("entries_per_row", [1, 2, 8])
def test_parameters_are_written_by_the_row_and_read_one_by_one(entries_per_row):
    dut = ParameterMemory(64, entries_per_row)

    async def testbench(ctx):
        rng = random.Random(4)
        entries = [rng.getrandbits(64) for _ in range(64)]
        ctx.set(dut.write.enable, 1)
        for row in range(64 // entries_per_row):
            ctx.set(dut.write.address, row)
            part = entries[row * entries_per_row : (row + 1) * entries_per_row]
            put_word(ctx, dut.write, sum(entry << 64 * i for i, entry in enumerate(part)))
            await ctx.tick()
        ctx.set(dut.write.enable, 0)
        for _ in range(100):
            index = rng.randrange(64)
            ctx.set(dut.read.address, index)
            ctx.set(dut.read.enable, 1)
            await ctx.tick()
            assert ctx.get(dut.read.data.as_value()) == entries[index]
            ctx.set(dut.read.enable, 0)
            ctx.set(dut.read.address, rng.randrange(64))
            await ctx.tick()
            assert ctx.get(dut.read.data.as_value()) == entries[index]

    simulate(dut, testbench)
