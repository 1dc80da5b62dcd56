"""cocotb bench of :class:`twillcore.hw.load.LoadEngine`."""

import random

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge

from twillcore.hw.layouts import ISSUED, weight_row
from twillcore.hw.load import depth_rows, row_beats
from twillcore.isa import ENTRY_MEMORIES, Cause, Instruction, Memory, Opcode, WeightFormat
from twillcore.sim.axi_memory import AxiMemory
from twillcore.sim.streams import StreamSource, bench_config, reset
from twillcore.timing import ActivationSlot
from twillcore.weights import (
    decode_rows,
    encode_rows,
    encoded_rows,
    weight_row_bytes,
    weight_rows,
)

CONFIG = bench_config()
BASE = 0x2000
PRESENT = [memory for memory in Memory if depth_rows(memory, CONFIG)]
GAP_BYTES = 48  # between the data of two instructions, so that runs start anywhere in a page


def name(memory):
    """Return the port of ``memory``."""
    return f"{memory.name.lower()}_write"


def written_bytes(memory):
    """Return the bytes of one row as it is written: without the padding that it has in DRAM."""
    return {
        Memory.WEIGHT: CONFIG.dsp_columns,
        Memory.LUT_WEIGHT: CONFIG.lut_columns * CONFIG.block // 8,
    }.get(memory, row_beats(memory, CONFIG) * CONFIG.axi_bytes)


class Program:
    """Random LOADs of one run each, their data in DRAM, and what they must write."""

    def __init__(self, rng, count):
        self.rng, self.memory = rng, bytearray(BASE)
        self.instructions, self.spans = [], []
        self.writes = {memory: [] for memory in PRESENT}
        for _ in range(count):
            self._append(rng.choice(PRESENT))
        self.memory += bytes(-len(self.memory) % 4096)

    def _append(self, memory):
        rng = self.rng
        entries = CONFIG.entries_per_beat if memory in ENTRY_MEMORIES else 1
        depth = depth_rows(memory, CONFIG)
        format, beats, rows = WeightFormat.DENSE, 0, rng.randrange(1, min(depth, 24) + 1)
        if memory == Memory.WEIGHT:
            beats = rng.randrange(1, CONFIG.block + 1)
            format = WeightFormat.DENSE
            if beats < CONFIG.block:
                format = rng.choice([WeightFormat.BITMAP, WeightFormat.INDEX])
            data, rows, written = self._weights(beats, format)
        else:
            size = row_beats(memory, CONFIG) * CONFIG.axi_bytes
            data = rng.randbytes(rows * size)
            written = [(data[i * size :][: written_bytes(memory)], 0) for i in range(rows)]
        local = rng.randrange(depth - rows + 1)
        self.memory += bytes(GAP_BYTES)
        start = len(self.memory)
        self.memory += data
        self.spans.append((start, len(self.memory)))
        self.writes[memory] += [(local + i, *row) for i, row in enumerate(written)]
        self.instructions.append(Instruction(Opcode.LOAD, {
            "memory": memory, "format": format, "beats": beats, "dram": start - BASE,
            "dram_stride": 0, "local": local * entries, "local_stride": 0,
            "count": rows * entries, "runs": 1,
        }))  # fmt: skip

    def _weights(self, beats, format):
        """Return encoded weights of random blocks, their rows, and what is written."""
        columns, block, blocks = CONFIG.dsp_columns, CONFIG.block, self.rng.randrange(1, 6)
        generator = np.random.default_rng(self.rng.randrange(1 << 30))
        values = generator.integers(-128, 128, (columns, blocks, block), dtype=np.int8)
        values[generator.random(values.shape).argsort(axis=-1) >= beats] = 0
        values = values.reshape(columns, -1)
        data = encode_rows(values, beats, format, CONFIG)
        weights, index = weight_rows(values, beats, CONFIG)
        stored = encoded_rows(len(weights), beats, format, CONFIG)
        assert len(data) == stored * weight_row_bytes(CONFIG)
        decoded = decode_rows(data, len(weights), beats, format, CONFIG)
        assert (decoded[0] == weights).all()
        assert (decoded[1] == index).all()
        layout = weight_row(CONFIG)["index"].shape
        positions = [layout.const(row.tolist()).as_bits() for row in index]
        written = [(row.tobytes(), p) for row, p in zip(weights, positions, strict=True)]
        return data, len(weights), written


class Stage:
    """The frame counter, and a record of all that LOAD writes and reports."""

    def __init__(self, dut):
        self.dut = dut
        self.writes = {memory: [] for memory in PRESENT}
        self.retired, self.errors = 0, []
        cocotb.start_soon(self._run())

    async def _run(self):
        dut, phase = self.dut, 0
        while True:
            dut.phase.value = phase
            await RisingEdge(dut.clk)
            for memory in PRESENT:
                port = name(memory)
                if not dut[f"{port}__enable"].value:
                    continue
                data, positions = int(dut[f"{port}__data"].value), 0
                size = written_bytes(memory)
                if memory == Memory.WEIGHT:  # the positions stand above the weights
                    data, positions = data % (1 << 8 * size), data >> 8 * size
                if memory <= Memory.WIDE:
                    assert phase == ActivationSlot.LOAD_WRITE
                address = int(dut[f"{port}__address"].value)
                self.writes[memory].append((address, data.to_bytes(size, "little"), positions))
            self.retired += bool(dut.retire.value)
            if dut.error__valid.value:
                cause = Cause(int(dut.error__cause.value))
                self.errors.append((cause, int(dut.error__index.value)))
            phase = (phase + 1) % 8


async def run(dut, rng, program, gap, stall, read_errors=()):
    """Run ``program`` and return the stage."""
    await reset(
        dut, base=BASE, phase=0, instruction__valid=0, read__arready=0, read__rvalid=0
    )  # fmt: skip
    stage = Stage(dut)
    memory = AxiMemory(
        dut, "read", program.memory, rng, gap=gap, stall=stall, read_errors=set(read_errors)
    )
    memory.serve_reads()
    source = StreamSource(dut, "instruction", gap=gap, rng=rng)
    for index, instruction in enumerate(program.instructions):
        source.put(ISSUED.const({"word": instruction.encode(), "index": index}).as_bits())
    for _ in range(30_000):
        if stage.retired == len(program.instructions):
            return stage
        await RisingEdge(dut.clk)
    raise AssertionError(f"only {stage.retired} instructions retired")


@cocotb.test()
@cocotb.parametrize(gap=[0.0, 0.5], stall=[0.0, 0.5])
async def writes_what_dram_holds(dut, gap, stall):
    """Write the golden rows to every memory, in order, whatever the bus does."""
    rng = random.Random(cocotb.RANDOM_SEED)
    program = Program(rng, 30)
    stage = await run(dut, rng, program, gap, stall)
    assert stage.writes == program.writes
    assert stage.errors == []


@cocotb.test()
@cocotb.parametrize(gap=[0.0, 0.5], stall=[0.0, 0.5])
async def names_the_load_that_failed(dut, gap, stall):
    """Report an error response with the index of the instruction whose data it is."""
    rng = random.Random(cocotb.RANDOM_SEED)
    program = Program(rng, 12)
    address = rng.randrange(*program.spans[7])
    stage = await run(dut, rng, program, gap, stall, read_errors=[address])
    assert stage.errors == [(Cause.AXI_READ_ERROR, 7)]
