"""Amaranth bench of the vector and move engines: memories with slots, instructions, a stopwatch."""

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from amaranth.hdl import Value

from twillcore.config import FRAME_CYCLES, Config
from twillcore.hw.ports import Activity
from twillcore.isa import Instruction
from twillcore.sim.bench import simulate
from twillcore.timing import SHARED_READ_CYCLES, ActivationSlot, WideReadSlot, WideWriteSlot


def pack(values, bits):
    """Return the integer whose ``bits``-bit fields, from the LSB up, are ``values``, flattened."""
    return int.from_bytes(np.ascontiguousarray(values, f"<i{bits // 8}").tobytes(), "little")


def unpack(word, shape, bits):
    """Return the signed ``bits``-bit fields of ``word`` as int64."""
    count = int(np.prod(shape))
    raw = int(word).to_bytes(count * bits // 8, "little")
    return np.frombuffer(raw, f"<i{bits // 8}").reshape(shape).astype(np.int64)


@dataclass
class Run:
    """What a run showed: per instruction the cycles of start and retire, and any error."""

    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    error: tuple[int, int] | None = None  # cause, index
    error_cycle: int | None = None


class EngineBench:
    """Memories for one engine; :meth:`run` executes instructions on them.

    Read data is valid in the cycle after the access and noise in all others. An access in another
    client's slot, or beyond the end of a memory, fails.
    """

    def __init__(self, config: Config, rng):
        self.config = config
        self.rng = rng
        lanes, block = config.lanes, config.block
        self.wide = np.zeros((config.wide_depth, lanes, block), np.int64)
        self.activation = np.zeros((config.activation_depth, lanes, block), np.int64)
        self.operand = np.zeros((config.operand_depth, config.dsp_columns), np.int64)
        self.norm = [0] * config.norm_depth
        self.maximum = np.zeros((config.lane_depth, lanes), np.int64)
        self.lane_scale = np.zeros((config.lane_depth, lanes, 2), np.int64)

    def _readers(self, dut):
        """Yield (port, slot, function of an address that gives the data as an integer)."""

        def wide(address):
            return pack(self.wide[address], 16)

        def activation(address):
            return pack(self.activation[address], 8)

        ports = {
            "wide_read_a": (WideReadSlot.VECTOR_READ_A, wide),
            "wide_read_b": (WideReadSlot.VECTOR_READ_B, wide),
            "activation_read_a": (ActivationSlot.VECTOR_READ_A, activation),
            "activation_read_b": (ActivationSlot.VECTOR_READ_B, activation),
            "activation_read": (ActivationSlot.MOVE_READ, activation),
            "norm": (None, lambda address: self.norm[address]),
            "row_maximum": (None, lambda address: pack(self.maximum[address], 16)),
        }
        for name, (slot, read) in ports.items():
            if hasattr(dut, name):
                yield getattr(dut, name), slot, read

    def _writers(self, dut):
        """Yield (port, slot, function of address, data and enable bits that writes)."""
        lanes, block = self.config.lanes, self.config.block

        def wide(address, data, _enable):
            self.wide[address] = unpack(data, (lanes, block), 16)

        def activation(address, data, _enable):
            self.activation[address] = unpack(data, (lanes, block), 8)

        def operand(address, data, enable):
            row = unpack(data, (self.config.dsp_columns,), 8)
            for group in range(self.config.dsp_columns // lanes):
                if enable >> group & 1:
                    columns = slice(group * lanes, (group + 1) * lanes)
                    self.operand[address, columns] = row[columns]

        def lane_scale(address, data, _enable):
            for lane in range(lanes):
                entry = data >> 23 * lane & (1 << 23) - 1
                self.lane_scale[address, lane] = entry & (1 << 17) - 1, entry >> 17

        ports = {
            "wide_write": (WideWriteSlot.VECTOR_WRITE, wide),
            "activation_write": (ActivationSlot.VECTOR_WRITE, activation),
            "operand_write": (None, operand),
            "lane_scale": (None, lane_scale),
        }
        for name, (slot, write) in ports.items():
            if hasattr(dut, name):
                yield getattr(dut, name), slot, write

    def run(self, dut, instructions: list[Instruction], gaps=(), limit=20_000) -> Run:
        """Execute ``instructions``; ``gaps[i]`` cycles after the last one ended, i is offered.

        Returns after the last has retired and a while longer, or a while after an error.
        """
        result = Run()
        gaps = [*gaps, *[0] * (len(instructions) - len(gaps))]
        readers, writers = list(self._readers(dut)), list(self._writers(dut))

        async def bench(ctx):
            # Data under way: those of a shared memory stand SHARED_READ_CYCLES after their slot.
            pending = [
                deque([None] * (SHARED_READ_CYCLES if slot is not None else 1))
                for _, slot, _ in readers
            ]
            offer_at = gaps[0]
            grace = 40
            for cycle in range(limit):
                phase = cycle % FRAME_CYCLES
                ctx.set(dut.phase, phase)
                for (port, _, _), words in zip(readers, pending, strict=True):
                    word = words.popleft()
                    data = Value.cast(port.data)
                    noise = int.from_bytes(self.rng.bytes(-(-len(data) // 8)), "little")
                    ctx.set(data, noise & (1 << len(data)) - 1 if word is None else word)
                index = len(result.starts)
                offer = index < len(instructions) and len(result.ends) == index
                # an instruction may be taken in the very cycle in which the last one retires
                ending = len(result.ends) == index - 1 and ctx.get(dut.retire)
                offer |= bool(index < len(instructions) and ending and not gaps[index])
                offer &= cycle >= offer_at
                ctx.set(dut.instruction.valid, offer)
                if offer:
                    word = instructions[index].encode()
                    ctx.set(dut.instruction.payload, {"word": word, "index": index})
                busy = ctx.get(dut.activity) is Activity.BUSY
                assert result.error or busy == (len(result.starts) > len(result.ends))
                if ctx.get(dut.retire):
                    result.ends.append(cycle)
                    if len(result.ends) < len(instructions):
                        offer_at = cycle + gaps[len(result.ends)]
                if offer and ctx.get(dut.instruction.ready):
                    result.starts.append(cycle)
                if ctx.get(dut.error.valid):
                    assert result.error is None, "error is a pulse"
                    result.error = ctx.get(dut.error.cause), ctx.get(dut.error.index)
                    result.error_cycle = cycle
                for (port, slot, read), words in zip(readers, pending, strict=True):
                    enable = ctx.get(port.enable)
                    assert not enable or slot in (None, phase), f"read in phase {phase}"
                    words.append(read(ctx.get(port.address)) if enable else None)
                for port, slot, write in writers:
                    if enable := ctx.get(port.enable):
                        assert slot in (None, phase), f"write in phase {phase}"
                        write(ctx.get(port.address), ctx.get(Value.cast(port.data)), enable)
                if result.error or len(result.ends) == len(instructions):
                    grace -= 1
                    if not grace:
                        return
                await ctx.tick()
            raise TimeoutError(f"{len(result.ends)} of {len(instructions)} instructions retired")

        simulate(dut, bench, timeout=limit + 10)
        return result
