# amaranth: UnusedElaboratable=no

import random

import pytest

from twillcore.fpga.block_memory import BlockMemory
from twillcore.hw.axi import Burst, Response
from twillcore.sim.bench import idle, simulate

SIZE = 4096
BEAT_BYTES = 8


class Host:
    """The memory's manager and byte client, with random pauses."""

    def __init__(self, dut, seed=0):
        self.dut, self.rng = dut, random.Random(seed)

    async def pause(self, ctx):
        await idle(ctx, self.rng.choice([0, 0, 1, 3]))

    async def write(self, ctx, address, beats, *, size=3, burst=Burst.INCR):
        """Write (data, strobe) beats; return the response."""
        bus = self.dut.bus
        ctx.set(bus.awaddr, address)
        ctx.set(bus.awlen, len(beats) - 1)
        ctx.set(bus.awsize, size)
        ctx.set(bus.awburst, burst)
        ctx.set(bus.awid, 1)
        await self.handshake(ctx, bus.awvalid, bus.awready)
        for number, (data, strobe) in enumerate(beats):
            await self.pause(ctx)
            ctx.set(bus.wdata, data)
            ctx.set(bus.wstrb, strobe)
            ctx.set(bus.wlast, number == len(beats) - 1)
            await self.handshake(ctx, bus.wvalid, bus.wready)
        await self.pause(ctx)
        response, number = await self.take(ctx, bus.bvalid, bus.bready, bus.bresp, bus.bid)
        assert number == 1
        return response

    async def read(self, ctx, address, count, *, size=3, burst=Burst.INCR):
        """Return (data, response) of every beat."""
        bus = self.dut.bus
        ctx.set(bus.araddr, address)
        ctx.set(bus.arlen, count - 1)
        ctx.set(bus.arsize, size)
        ctx.set(bus.arburst, burst)
        ctx.set(bus.arid, 1)
        await self.handshake(ctx, bus.arvalid, bus.arready)
        beats = []
        for number in range(count):
            await self.pause(ctx)
            data, response, last, identity = await self.take(
                ctx, bus.rvalid, bus.rready, bus.rdata, bus.rresp, bus.rlast, bus.rid
            )
            assert (last, identity) == (number == count - 1, 1)
            beats.append((data, response))
        return beats

    async def handshake(self, ctx, valid, ready):
        ctx.set(valid, 1)
        taken = False
        while not taken:
            _, _, taken = await ctx.tick().sample(ready)
        ctx.set(valid, 0)

    async def take(self, ctx, valid, ready, *signals):
        ctx.set(ready, 1)
        there = False
        while not there:
            _, _, there, *values = await ctx.tick().sample(valid, *signals)
        ctx.set(ready, 0)
        return values

    async def write_byte(self, ctx, address, value):
        port = self.dut.bytes
        ctx.set(port.address, address)
        ctx.set(port.write_data, value)
        ctx.set(port.write, 1)
        await ctx.tick()
        ctx.set(port.write, 0)

    async def read_byte(self, ctx, address):
        port = self.dut.bytes
        ctx.set(port.address, address)
        ctx.set(port.read, 1)
        await ctx.tick()
        ctx.set(port.read, 0)
        return ctx.get(port.read_data)


def memory():
    return BlockMemory(8 * BEAT_BYTES, SIZE)


def test_random_traffic_on_both_ports():
    dut, model, rng = memory(), bytearray(SIZE), random.Random(5)
    host = Host(dut, 1)

    async def bench(ctx):
        for _ in range(60):
            count = rng.choice([1, 2, 5, 16])
            address = rng.randrange(0, SIZE - count * BEAT_BYTES + 1, BEAT_BYTES)
            kind = rng.randrange(4)
            if kind == 0:
                beats = [(rng.getrandbits(64), rng.getrandbits(8)) for _ in range(count)]
                assert await host.write(ctx, address, beats) == Response.OKAY
                for number, (data, strobe) in enumerate(beats):
                    for lane in range(BEAT_BYTES):
                        if strobe >> lane & 1:
                            model[address + number * BEAT_BYTES + lane] = data >> 8 * lane & 0xFF
            elif kind == 1:
                expected = [
                    (int.from_bytes(model[a : a + BEAT_BYTES], "little"), Response.OKAY)
                    for a in range(address, address + count * BEAT_BYTES, BEAT_BYTES)
                ]
                assert await host.read(ctx, address, count) == expected
            elif kind == 2:
                address += rng.randrange(BEAT_BYTES)
                model[address] = rng.randrange(256)
                await host.write_byte(ctx, address, model[address])
            else:
                address += rng.randrange(BEAT_BYTES)
                assert await host.read_byte(ctx, address) == model[address]

    simulate(dut, bench)


def test_bytes_during_bursts_take_their_turn():
    """The port for bytes never waits; bursts lose nothing by it."""
    dut, rng = memory(), random.Random(6)
    host = Host(dut, 2)
    words = [rng.getrandbits(64) for _ in range(64)]
    finished = []

    async def bus(ctx):
        for start in range(0, 64, 16):
            beats = [(word, 0xFF) for word in words[start : start + 16]]
            assert await host.write(ctx, start * BEAT_BYTES, beats) == Response.OKAY
        for start in range(0, 64, 16):
            found = await host.read(ctx, start * BEAT_BYTES, 16)
            assert [data for data, _ in found] == words[start : start + 16]
        finished.append(True)

    async def byte_client(ctx):
        while not finished:
            address, value = rng.randrange(1024, SIZE), rng.randrange(256)
            await host.write_byte(ctx, address, value)
            await idle(ctx, rng.randrange(3))
            assert await host.read_byte(ctx, address) == value
            await idle(ctx, rng.randrange(3))

    simulate(dut, bus, byte_client)


def test_a_burst_moves_a_beat_per_cycle():
    dut = memory()
    arrivals = []

    async def bench(ctx):
        bus = dut.bus
        ctx.set(bus.arlen, 15)
        ctx.set(bus.arsize, 3)
        ctx.set(bus.arburst, Burst.INCR)
        ctx.set(bus.arvalid, 1)
        ctx.set(bus.rready, 1)
        for cycle in range(40):
            _, _, valid = await ctx.tick().sample(bus.rvalid)
            if valid:
                arrivals.append(cycle)

    simulate(dut, bench)
    first = arrivals[0]
    assert arrivals == list(range(first, first + len(arrivals)))  # no gap between bursts either
    assert len(arrivals) > 32


def test_outside_is_an_error_and_writes_nothing():
    dut = memory()
    host = Host(dut, 3)
    marked = [(0x1111111111111111, 0xFF)]

    async def bench(ctx):
        assert await host.write(ctx, 0, marked) == Response.OKAY
        assert await host.write(ctx, SIZE, [(0, 0xFF)]) == Response.SLVERR  # would wrap to 0
        assert await host.write(ctx, 1 << 31, [(0, 0xFF)]) == Response.SLVERR
        assert await host.read(ctx, 0, 1) == [(0x1111111111111111, Response.OKAY)]
        assert await host.read(ctx, SIZE, 2) == [(0, Response.SLVERR)] * 2
        # the error belongs to its burst only
        assert await host.write(ctx, 8, marked) == Response.OKAY

    simulate(dut, bench)


@pytest.mark.parametrize("wrong", [{"size": 2}, {"burst": Burst.WRAP}, {"burst": Burst.FIXED}])
def test_bursts_that_are_not_supported_are_errors(wrong):
    dut = memory()
    host = Host(dut, 4)

    async def bench(ctx):
        assert await host.write(ctx, 0, [(5, 0xFF)] * 2, **wrong) == Response.SLVERR
        assert await host.read(ctx, 0, 2, **wrong) == [(0, Response.SLVERR)] * 2
        assert await host.read(ctx, 0, 1) == [(0, Response.OKAY)]

    simulate(dut, bench)


@pytest.mark.parametrize("size", [2048, 5000, 0])
def test_sizes(size):
    with pytest.raises(
        ValueError, match=f"size must be a power of two and at least 4096 bytes, not {size}"
    ):
        BlockMemory(64, size)
