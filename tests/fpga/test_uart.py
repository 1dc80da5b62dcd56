# amaranth: UnusedElaboratable=no

import random

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from twillcore.fpga.uart import Received, UartReceiver, UartTransmitter
from twillcore.sim.bench import idle


def receive(drive, divisor):
    """Return what the receiver says, (byte, broken), while ``drive(ctx, line)`` moves the line."""
    dut, found = UartReceiver(divisor), []
    sim = Simulator(dut)
    sim.add_clock(1e-6)

    async def line(ctx):
        await idle(ctx, 2 * divisor)
        await drive(ctx, dut.line)
        ctx.set(dut.line, 1)
        await idle(ctx, 12 * divisor)

    async def watch(ctx):
        while True:
            _, _, valid, byte = await ctx.tick().sample(dut.valid, dut.payload)
            if valid:
                found.append((byte.data, byte.broken))

    sim.add_testbench(line)
    sim.add_testbench(watch, background=True)
    sim.run()
    return found


async def send(ctx, line, byte, bit_cycles, stop=1):
    now = 0.0
    for bit in (0, *(byte >> i & 1 for i in range(8)), stop):
        ctx.set(line, bit)
        before, now = now, now + bit_cycles
        await idle(ctx, round(now) - round(before))


@pytest.mark.parametrize("divisor", [8, 9, 25, 50])
@pytest.mark.parametrize("drift", [-0.03, 0.0, 0.03])
def test_receiver_follows_a_drifting_clock(divisor, drift):
    rng = random.Random(divisor)
    data = [0x00, 0xFF, 0x55, *rng.randbytes(12)]

    async def drive(ctx, line):
        for byte in data:
            await send(ctx, line, byte, divisor * (1 + drift))

    assert receive(drive, divisor) == [(byte, 0) for byte in data]


def test_missing_stop_bit_is_broken_and_the_next_byte_is_whole():
    async def drive(ctx, line):
        await send(ctx, line, 0xA5, 16, stop=0)
        ctx.set(line, 1)
        await idle(ctx, 20)
        await send(ctx, line, 0x5A, 16)

    assert receive(drive, 16) == [(0xA5, 1), (0x5A, 0)]


def test_line_held_low_is_one_broken_byte():
    async def drive(ctx, line):
        ctx.set(line, 0)
        await idle(ctx, 16 * 50)
        ctx.set(line, 1)
        await idle(ctx, 20)
        await send(ctx, line, 0x42, 16)

    assert receive(drive, 16) == [(0, 1), (0x42, 0)]


def test_glitches_are_outvoted():
    async def drive(ctx, line):
        ctx.set(line, 0)  # shorter than half a bit: no start
        await idle(ctx, 5)
        ctx.set(line, 1)
        await idle(ctx, 40)
        for bit in (0, 1, 0, 1, 1, 0, 0, 1, 0, 1):  # one wrong cycle in the middle of every bit
            ctx.set(line, bit)
            await idle(ctx, 8)
            ctx.set(line, 1 - bit)
            await idle(ctx, 1)
            ctx.set(line, bit)
            await idle(ctx, 7)

    assert receive(drive, 16) == [(0b0100_1101, 0)]


class _Loop(wiring.Component):
    """A transmitter on a receiver."""

    def __init__(self, divisor):
        self.transmitter, self.receiver = UartTransmitter(divisor), UartReceiver(divisor)
        super().__init__({"valid": Out(1), "payload": Out(Received), "unused": In(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.transmitter, m.submodules.receiver = self.transmitter, self.receiver
        m.d.comb += [
            self.receiver.line.eq(self.transmitter.line),
            self.valid.eq(self.receiver.valid),
            self.payload.eq(self.receiver.payload),
        ]
        return m


def test_transmitter_sends_a_byte_in_ten_bits():
    divisor, data = 9, random.Random(3).randbytes(20)
    dut, found = _Loop(divisor), []
    sim = Simulator(dut)
    sim.add_clock(1e-6)

    async def source(ctx):
        i = dut.transmitter.i
        cycles = 0
        ctx.set(i.valid, 1)
        for byte in data:
            ctx.set(i.payload, byte)
            while not ctx.get(i.ready):
                await ctx.tick()
                cycles += 1
            await ctx.tick()
            cycles += 1
        ctx.set(i.valid, 0)
        assert cycles == 1 + (len(data) - 1) * (10 * divisor + 1)
        await idle(ctx, 11 * divisor)

    async def watch(ctx):
        while True:
            _, _, valid, byte = await ctx.tick().sample(dut.valid, dut.payload)
            if valid:
                found.append((byte.data, byte.broken))

    sim.add_testbench(source)
    sim.add_testbench(watch, background=True)
    sim.run()
    assert found == [(byte, 0) for byte in data]


def test_too_fast_a_line_is_refused():
    for unit in (UartReceiver, UartTransmitter):
        with pytest.raises(ValueError, match="a bit needs at least 8 clock cycles, not 7"):
            unit(7)
