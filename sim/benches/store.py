"""cocotb bench of :class:`twillcore.hw.store.StoreEngine`."""

import random

import cocotb
from cocotb.triggers import RisingEdge

from twillcore.hw.layouts import ISSUED
from twillcore.isa import Cause, Instruction, Memory, Opcode
from twillcore.sim.axi_memory import AxiMemory
from twillcore.sim.streams import StreamSource, bench_config, reset
from twillcore.timing import SHARED_READ_CYCLES, ActivationSlot

CONFIG = bench_config()
MEMORY_BYTES = 1 << 16
BASE = 0x2000
PORTS = {Memory.ACTIVATION: "activation_read", Memory.WIDE: "wide_read"}
WORD_BYTES = {Memory.ACTIVATION: CONFIG.word_bytes, Memory.WIDE: 2 * CONFIG.word_bytes}
DEPTHS = {Memory.ACTIVATION: CONFIG.activation_depth, Memory.WIDE: CONFIG.wide_depth}


def random_store(rng):
    """Any legal STORE."""
    memory = rng.choice(list(PORTS))
    count, runs = rng.randrange(1, 12), rng.choice([1, 1, 2, 3])
    local_stride = rng.randrange(2 * count)
    size = count * WORD_BYTES[memory]
    dram_stride = size + rng.randrange(8) * CONFIG.axi_bytes
    end = MEMORY_BYTES - BASE - (runs - 1) * dram_stride - size
    return Instruction(Opcode.STORE, {
        "memory": memory, "count": count, "runs": runs, "dram_stride": dram_stride,
        "local": rng.randrange(DEPTHS[memory] - (runs - 1) * local_stride - count + 1),
        "local_stride": local_stride,
        "dram": rng.randrange(end // CONFIG.axi_bytes + 1) * CONFIG.axi_bytes,
    })  # fmt: skip


class Stage:
    """The memories that STORE reads, the frame counter, and a record of what it reports."""

    def __init__(self, dut, rng):
        self.dut, self.rng = dut, rng
        self.words = {m: [rng.randbytes(WORD_BYTES[m]) for _ in range(DEPTHS[m])] for m in PORTS}
        self.retired, self.errors = 0, []
        cocotb.start_soon(self._run())

    def apply(self, memory, instruction):
        """Golden model: what a STORE does to DRAM."""
        source = Memory(instruction["memory"])
        size = WORD_BYTES[source]
        for run in range(instruction["runs"]):
            at = BASE + instruction["dram"] + run * instruction["dram_stride"]
            first = instruction["local"] + run * instruction["local_stride"]
            words = self.words[source][first : first + instruction["count"]]
            memory[at : at + size * len(words)] = b"".join(words)

    async def _run(self):
        dut, phase = self.dut, 0
        under_way = dict.fromkeys(PORTS, [None] * (SHARED_READ_CYCLES - 1))
        while True:
            dut.phase.value = phase
            await RisingEdge(dut.clk)
            for memory, name in PORTS.items():
                read = None
                if dut[f"{name}__enable"].value:
                    assert phase == ActivationSlot.STORE_READ
                    read = self.words[memory][int(dut[f"{name}__address"].value)]
                data, *under_way[memory] = *under_way[memory], read
                data = data or self.rng.randbytes(WORD_BYTES[memory])  # none without an enable
                dut[f"{name}__data"].value = int.from_bytes(data, "little")
            self.retired += bool(dut.retire.value)
            if dut.error__valid.value:
                cause = Cause(int(dut.error__cause.value))
                self.errors.append((cause, int(dut.error__index.value)))
            phase = (phase + 1) % 8


async def begin(dut, rng, gap):
    """Reset, and return the stage and the source of instructions."""
    await reset(
        dut, base=BASE, phase=0, instruction__valid=0, write__awready=0, write__wready=0,
        write__bvalid=0,
    )  # fmt: skip
    return Stage(dut, rng), StreamSource(dut, "instruction", gap=gap, rng=rng)


def put(source, index, instruction):
    """Issue an instruction."""
    source.put(ISSUED.const({"word": instruction.encode(), "index": index}).as_bits())


async def until(dut, condition, cycles=30_000):
    """Wait for ``condition``."""
    for _ in range(cycles):
        if condition():
            return
        await RisingEdge(dut.clk)
    raise AssertionError(f"not within {cycles} cycles")


@cocotb.test()
@cocotb.parametrize(gap=[0.0, 0.5], stall=[0.0, 0.5], data_first=[False, True])
async def writes_what_the_memories_hold(dut, gap, stall, data_first):
    """Write what the golden model does, under idle cycles and backpressure on all channels."""
    rng = random.Random(cocotb.RANDOM_SEED)
    stage, source = await begin(dut, rng, gap)
    memory = bytearray(MEMORY_BYTES)
    AxiMemory(dut, "write", memory, rng, gap=gap, stall=stall, data_first=data_first).serve_writes()
    expected = bytearray(MEMORY_BYTES)
    instructions = [random_store(rng) for _ in range(25)]
    for index, instruction in enumerate(instructions):
        put(source, index, instruction)
        stage.apply(expected, instruction)
    await until(dut, lambda: stage.retired == len(instructions))
    assert memory == expected
    assert stage.errors == []


@cocotb.test()
@cocotb.parametrize(gap=[0.0, 0.5], stall=[0.0, 0.5])
async def names_the_store_that_failed(dut, gap, stall):
    """Report an error response with the index of the instruction whose burst it answers."""
    rng = random.Random(cocotb.RANDOM_SEED)
    stage, source = await begin(dut, rng, gap)
    memory = AxiMemory(dut, "write", bytearray(MEMORY_BYTES), rng, gap=gap, stall=stall)
    memory.serve_writes()
    instructions = [random_store(rng) for _ in range(12)]
    size = WORD_BYTES[Memory(instructions[7]["memory"])] * instructions[7]["count"]
    memory.write_errors = {BASE + instructions[7]["dram"] + rng.randrange(size)}
    blamed = set()
    for index, instruction in enumerate(instructions):
        put(source, index, instruction)
        before, after = bytearray(MEMORY_BYTES), bytearray(b"\xff" * MEMORY_BYTES)
        stage.apply(before, instruction)
        stage.apply(after, instruction)
        if any(before[at] == after[at] for at in memory.write_errors):
            blamed.add(index)
    await until(dut, lambda: stage.retired == len(instructions))
    assert {index for _, index in stage.errors} == blamed
    assert {cause for cause, _ in stage.errors} == {Cause.AXI_WRITE_ERROR}
