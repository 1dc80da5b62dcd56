import random

import numpy as np
import pytest

from twillcore.config import PRESETS
from twillcore.dram import Dram
from twillcore.hw.load import (
    LoadEngine,
    depth_rows,
    row_beats,
)
from twillcore.hw.ports import Activity
from twillcore.isa import ENTRY_MEMORIES, Cause, Instruction, Memory, Opcode, WeightFormat
from twillcore.sim.bench import simulate
from twillcore.sim.bench_dram import BenchDram
from twillcore.timing import ActivationSlot
from twillcore.weights import decode_rows, encoded_rows, plane_row_bytes, weight_row_bytes

TINY = PRESETS["tiny"]
NARROW = TINY.replace(name="narrow", axi_data_bits=32, axi_burst_beats=12, lanes=2)
WIDE = TINY.replace(
    name="wide", axi_data_bits=128, axi_burst_beats=32, block=16, dsp_columns=32, lanes=6,
    operand_depth=0,
)  # fmt: skip
#: A row of weights is one and a half beats, one of bit-planes half a beat.
PADDED = TINY.replace(
    name="padded", axi_data_bits=128, dsp_columns=24, lut_columns=8, lut_weight_depth=64,
    tap_depth=64, operand_depth=0,
)  # fmt: skip
CONFIGS = [TINY, NARROW, WIDE, PADDED]
MEMORY_BYTES = 1 << 16
BASE = 0x1000


def load(**operands):
    defaults = {
        "memory": Memory.WEIGHT, "format": WeightFormat.DENSE, "beats": 0, "dram": 0,
        "dram_stride": 0, "local": 0, "local_stride": 0, "count": 8, "runs": 1,
    }  # fmt: skip
    return Instruction(Opcode.LOAD, defaults | operands)


def present(config):
    """The memories that ``config`` has."""
    return [memory for memory in Memory if depth_rows(memory, config)]


def run_bytes(instruction, config):
    """Bytes of DRAM of one run."""
    memory = Memory(instruction["memory"])
    if memory == Memory.WEIGHT:
        format = WeightFormat(instruction["format"])
        rows = encoded_rows(instruction["count"], instruction["beats"], format, config)
        return rows * weight_row_bytes(config)
    unit = {
        Memory.ACTIVATION: config.word_bytes,
        Memory.WIDE: 2 * config.word_bytes,
        Memory.LUT_WEIGHT: plane_row_bytes(config),
    }
    return instruction["count"] * unit.get(memory, 8)


def random_load(rng, config, largest=40):
    """Any legal LOAD of at most about ``largest`` units."""
    memory = rng.choice(present(config))
    entries = config.entries_per_beat if memory in ENTRY_MEMORIES else 1
    depth = depth_rows(memory, config) * entries
    format, beats, step = WeightFormat.DENSE, rng.randrange(32), entries
    if memory == Memory.WEIGHT:
        format = rng.choice(list(WeightFormat))
        if format == WeightFormat.BITMAP:
            step = beats = rng.randrange(1, config.block + 1)
    count = step * rng.randrange(1, max(2, min(largest, depth // 2) // step + 1))
    runs = rng.choice([1, 1, 1, 2, 3])
    room = (depth - count) // max(1, runs - 1)
    local_stride = rng.randrange(min(room, 2 * count) // entries + 1) * entries
    last = (runs - 1) * local_stride + count
    local = rng.randrange((depth - last) // entries + 1) * entries
    operands = {"memory": memory, "format": format, "beats": beats, "count": count, "runs": runs}
    size = run_bytes(load(**operands), config)
    dram_stride = rng.randrange(3 * size // config.axi_bytes) * config.axi_bytes
    end = MEMORY_BYTES - BASE - (runs - 1) * dram_stride - size
    dram = rng.randrange(end // config.axi_bytes + 1) * config.axi_bytes
    return load(
        **operands, dram=dram, dram_stride=dram_stride, local=local, local_stride=local_stride
    )


def written_bytes(memory, config):
    """Bytes of one row as it is written: without the padding that it has in DRAM."""
    return {
        Memory.WEIGHT: config.dsp_columns,
        Memory.LUT_WEIGHT: config.lut_columns * config.block // 8,
    }.get(memory, row_beats(memory, config) * config.axi_bytes)


def expand(memory_bytes, instruction, config):
    """Golden model: the rows that a LOAD writes, as (memory, address, bytes, index) in order."""
    memory = Memory(instruction["memory"])
    size = run_bytes(instruction, config)
    row_bytes = row_beats(memory, config) * config.axi_bytes
    entries = config.entries_per_beat if memory in ENTRY_MEMORIES else 1
    for run in range(instruction["runs"]):
        start = BASE + instruction["dram"] + run * instruction["dram_stride"]
        data = bytes(memory_bytes[start : start + size])
        address = (instruction["local"] + run * instruction["local_stride"]) // entries
        if memory == Memory.WEIGHT:
            weights, index = decode_rows(
                data, instruction["count"], instruction["beats"],
                WeightFormat(instruction["format"]), config,
            )  # fmt: skip
            for i, (row, position) in enumerate(zip(weights, index, strict=True)):
                yield memory, address + i, row.tobytes(), tuple(position.tolist())
        else:
            written = written_bytes(memory, config)
            for i in range(size // row_bytes):
                yield memory, address + i, data[i * row_bytes :][:written], ()


def fill(config, instructions, rng):
    """A random memory, with legal bitmaps wherever an instruction expects one."""
    memory = bytearray(rng.randbytes(MEMORY_BYTES))
    positions = np.random.default_rng(rng.randrange(1 << 30))
    for instruction in instructions:
        if instruction["format"] != WeightFormat.BITMAP:
            continue
        beats, width = instruction["beats"], config.dsp_columns
        for run in range(instruction["runs"]):
            at = BASE + instruction["dram"] + run * instruction["dram_stride"]
            for _ in range(instruction["count"] // beats):
                kept = positions.random((width, config.block)).argsort(axis=1) < beats
                bitmap = np.packbits(kept, axis=1, bitorder="little").T.tobytes()
                for header in range(0, len(bitmap), width):
                    memory[at : at + width] = bitmap[header : header + width]
                    at += weight_row_bytes(config)
                at += beats * weight_row_bytes(config)
    return memory


class Bench:
    """A LOAD engine with a DRAM, and a record of everything that it does."""

    def __init__(self, config, memory, dram=None):
        self.config, self.dut = config, LoadEngine(config)
        self.dram = BenchDram(dram or Dram(), memory)
        self.writes, self.starts, self.ends, self.errors, self.activity = [], [], [], [], []
        self.beats = []  # cycles in which a beat was taken

    def ports(self):
        return {
            memory: getattr(self.dut, f"{memory.name.lower()}_write")
            for memory in present(self.config)
        }

    def run(self, instructions, *, until_error=False, timeout=20_000):
        dut, config = self.dut, self.config

        async def drive(ctx):
            ctx.set(dut.base, BASE)
            cycle = 0
            queue = list(enumerate(instructions))
            done = False
            while not done:
                if queue:
                    index, instruction = queue[0]
                    ctx.set(dut.instruction.payload, {"word": instruction.encode(), "index": index})
                ctx.set(dut.instruction.valid, bool(queue))
                ctx.set(dut.phase, cycle % 8)
                _, _, ready, retire, activity, rvalid, rready = await ctx.tick().sample(
                    dut.instruction.ready, dut.retire, dut.activity, dut.read.rvalid,
                    dut.read.rready,
                )  # fmt: skip
                if queue and ready:
                    self.starts.append(cycle)
                    queue.pop(0)
                if retire:
                    self.ends.append(cycle)
                if rvalid and rready:
                    self.beats.append(cycle)
                self.activity.append(activity)
                assert (activity == Activity.BUSY) == bool(rvalid and rready)
                done = len(self.ends) == len(instructions) or (until_error and self.errors)
                cycle += 1

        async def watch(ctx):
            cycle = 0
            ports = self.ports()
            while True:
                signals = []
                for memory, port in ports.items():
                    parts = (
                        (port.data.weight, port.data.index)
                        if memory == Memory.WEIGHT
                        else (port.data,)
                    )
                    signals += [port.enable, port.address, *(p.as_value() for p in parts)]
                _, _, valid, cause, index, *values = await ctx.tick().sample(
                    dut.error.valid, dut.error.cause, dut.error.index, *signals
                )
                if valid:
                    self.errors.append((Cause(cause), index))
                values = iter(values)
                for memory in ports:
                    enable, address, data = next(values), next(values), next(values)
                    positions = ()
                    bits = next(values) if memory == Memory.WEIGHT else 0
                    if memory == Memory.WEIGHT:
                        width = config.index_bits
                        positions = tuple(
                            bits >> width * c & (1 << width) - 1 for c in range(config.dsp_columns)
                        )
                    if enable:
                        if memory <= Memory.WIDE:
                            assert cycle % 8 == ActivationSlot.LOAD_WRITE
                        size = written_bytes(memory, config)
                        self.writes.append(
                            (memory, address, data.to_bytes(size, "little"), positions)
                        )
                cycle += 1

        simulate(dut, drive, timeout=timeout, background=(watch, self.dram.serve_reads(dut.read)))


def by_memory(writes):
    """Order between memories is free: words wait for their slot."""
    return {m: [write for write in writes if write[0] == m] for m in Memory}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
@pytest.mark.parametrize("dram", [Dram(), Dram(latency=1, beat_cycles=2), Dram(7, 3, 2)])
def test_random_loads_write_what_the_golden_model_says(config, dram):
    rng = random.Random(f"{config.name} {dram}")
    instructions = [random_load(rng, config) for _ in range(10)]
    memory = fill(config, instructions, rng)
    bench = Bench(config, memory, dram)
    bench.run(instructions)
    expected = [w for i in instructions for w in expand(memory, i, config)]
    assert by_memory(bench.writes) == by_memory(expected)
    assert bench.errors == []


def test_weights_stream_without_a_gap_from_instruction_to_instruction():
    bench = Bench(TINY, bytearray(MEMORY_BYTES))
    instructions = [
        load(count=100, dram=8),
        load(format=WeightFormat.BITMAP, beats=2, count=60),
        load(format=WeightFormat.INDEX, count=21, runs=2, dram_stride=4096 - 64),
        load(memory=Memory.PARAMETER, count=100),
    ]
    bench.run(instructions)
    beats = 100 + 90 + 2 * (21 + 11) + 100
    assert bench.beats == list(range(bench.beats[0], bench.beats[0] + beats))


def test_latency():
    bench = Bench(TINY, bytearray(MEMORY_BYTES))
    bench.run([load(count=1)])
    assert bench.starts == [0]
    assert bench.dram.reads == [(6, 1, BASE, 1)]
    assert bench.beats == [6 + Dram().latency]
    assert bench.ends == [bench.beats[0] + 3]


def test_words_wait_for_their_slot_and_later_rows_for_their_turn_to_retire():
    bench = Bench(TINY, bytearray(MEMORY_BYTES))
    bench.run([load(memory=Memory.WIDE, count=1), load(count=1), load(count=1, dram=4096)])
    written = bench.beats[7] + 2 + (ActivationSlot.LOAD_WRITE - bench.beats[7] - 2) % 8
    assert bench.ends == [written + 1, written + 2, written + 3]


def test_bursts_are_as_long_as_allowed():
    bench = Bench(TINY, bytearray(MEMORY_BYTES))
    bench.run([load(count=40, dram=4096 - 24)])
    assert [(address - BASE, beats) for _, _, address, beats in bench.dram.reads] == [
        (4096 - 24, 3), (4096, 16), (4096 + 128, 16), (4096 + 256, 5),
    ]  # fmt: skip


ILLEGAL = [
    {"memory": 6}, {"memory": 7}, {"format": 3}, {"count": 0}, {"runs": 0}, {"dram": 4},
    {"dram_stride": 4}, {"memory": Memory.WIDE, "format": WeightFormat.INDEX},
    {"memory": Memory.PARAMETER, "format": WeightFormat.BITMAP, "beats": 4},
    {"format": WeightFormat.BITMAP, "beats": 0}, {"format": WeightFormat.BITMAP, "beats": 9},
    {"format": WeightFormat.BITMAP, "beats": 3, "count": 8},
]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "operands"),
    [
        *((TINY, operands) for operands in ILLEGAL),
        (TINY.replace(norm_depth=0), {"memory": Memory.NORM}),
        (WIDE, {"memory": Memory.PARAMETER, "count": 3}),
        (WIDE, {"memory": Memory.TABLE, "local": 1, "count": 2}),
        (WIDE, {"memory": Memory.NORM, "local_stride": 1}),
    ],
    ids=str,
)
def test_illegal_operands_stop(config, operands):
    bench = Bench(config, bytearray(MEMORY_BYTES))
    bench.run([load(), load(**operands), load()], until_error=True)
    assert bench.errors == [(Cause.ILLEGAL_INSTRUCTION, 1)]
    assert len(bench.starts) == 2


@pytest.mark.parametrize(
    ("config", "memory"),
    [(config, memory) for config in (TINY, WIDE, PADDED) for memory in present(config)],
    ids=lambda value: value.name,
)
def test_the_last_row_is_the_last(config, memory):
    entries = config.entries_per_beat if memory in ENTRY_MEMORIES else 1
    end = depth_rows(memory, config) * entries
    operands = {"memory": memory, "count": 2 * entries, "runs": 2, "local_stride": 3 * entries}
    good = load(**operands, local=end - 5 * entries)
    bad = load(**operands, local=end - 4 * entries)
    bench = Bench(config, bytearray(MEMORY_BYTES))
    bench.run([good, bad], until_error=True)
    assert bench.errors[0] == (Cause.ADDRESS_OUT_OF_RANGE, 1)
    assert len(bench.ends) <= 1
    assert max(address for _, address, _, _ in bench.writes) == end // entries - 1


def test_read_error_names_the_instruction_whose_data_it_is():
    bench = Bench(TINY, bytearray(MEMORY_BYTES))
    bench.dram.read_errors = {BASE + 4096 + 8 * 77 + 3}
    bench.run([load(count=30), load(count=100, dram=4096), load()], until_error=True)
    assert bench.errors == [(Cause.AXI_READ_ERROR, 1)]
