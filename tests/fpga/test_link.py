# amaranth: UnusedElaboratable=no

import random
import struct

import pytest

from twillcore.fpga import protocol
from twillcore.fpga.link import Link
from twillcore.fpga.protocol import END, ESCAPE, MAX_PAYLOAD, Opcode, Status
from twillcore.hw.axi import Response
from twillcore.sim.bench import idle, simulate

MEMORY_BYTES = 4096


class Board:
    """Memory and registers around a link, and the bytes on its line."""

    def __init__(self, dut, seed=0):
        self.dut, self.rng = dut, random.Random(seed)
        self.memory = bytearray(self.rng.randbytes(MEMORY_BYTES))
        self.registers, self.writes, self.resets = {}, [], 0
        self.sent = bytearray()

    async def memory_model(self, ctx):
        port = self.dut.memory
        while True:
            _, _, address, write, data, read, reset = await ctx.tick().sample(
                port.address, port.write, port.write_data, port.read, self.dut.reset
            )
            self.resets += reset
            if write:
                self.memory[address] = data
            if read:
                ctx.set(port.read_data, self.memory[address])

    async def register_writes(self, ctx):
        bus = self.dut.bus
        while True:
            await self.take(ctx, bus.awvalid, bus.awready)
            address = ctx.get(bus.awaddr)
            data = await self.take(ctx, bus.wvalid, bus.wready, bus.wdata)
            self.writes.append((address, data))
            ctx.set(bus.bresp, Response.SLVERR if address >= 0x800 else Response.OKAY)
            await self.give(ctx, bus.bvalid, bus.bready)

    async def register_reads(self, ctx):
        bus = self.dut.bus
        while True:
            address = await self.take(ctx, bus.arvalid, bus.arready, bus.araddr)
            ctx.set(bus.rdata, self.registers.get(address, 0))
            ctx.set(bus.rresp, Response.SLVERR if address >= 0x800 else Response.OKAY)
            await self.give(ctx, bus.rvalid, bus.rready)

    async def line(self, ctx):
        """Take what the link sends, as slowly as a serial line."""
        o = self.dut.o
        while True:
            ctx.set(o.ready, self.rng.random() < 0.3)
            _, _, valid, ready, byte = await ctx.tick().sample(o.valid, o.ready, o.payload)
            if valid and ready:
                self.sent.append(byte)

    async def take(self, ctx, valid, ready, *signals):
        await idle(ctx, self.rng.randrange(3))
        ctx.set(ready, 1)
        there, values = False, []
        while not there:
            _, _, there, *values = await ctx.tick().sample(valid, *signals)
        ctx.set(ready, 0)
        return values[0] if values else None

    async def give(self, ctx, valid, ready):
        await idle(ctx, self.rng.randrange(3))
        ctx.set(valid, 1)
        taken = False
        while not taken:
            _, _, taken = await ctx.tick().sample(ready)
        ctx.set(valid, 0)

    async def receive(self, ctx, line, broken=()):
        """Let bytes arrive; the numbers in ``broken`` without stop bit."""
        for number, byte in enumerate(line):
            ctx.set(self.dut.i.data, byte)
            ctx.set(self.dut.i.broken, number in broken)
            ctx.set(self.dut.i_valid, 1)
            await ctx.tick()
            ctx.set(self.dut.i_valid, 0)
            await idle(ctx, 2)

    async def answer(self, ctx, line, broken=(), wait=120):
        """Let bytes arrive; return the responses once the line is idle for ``wait`` cycles."""
        start = len(self.sent)
        await self.receive(ctx, line, broken)
        quiet, seen = 0, start
        while quiet < wait + 3 * MAX_PAYLOAD * (len(line) > 100):
            await ctx.tick()
            quiet = quiet + 1 if len(self.sent) == seen else 0
            seen = len(self.sent)
        frames = [part for part in bytes(self.sent[start:]).split(bytes([END])) if part]
        return [protocol.parse_response(part) for part in frames]

    async def request(self, ctx, sequence, opcode, length=0, address=0, payload=b""):
        """Return the response to a request."""
        line = protocol.request(opcode, sequence, length, address, payload)
        (response,) = await self.answer(ctx, line)
        return response


def run(scenario, seed=0):
    dut = Link(MEMORY_BYTES)
    board = Board(dut, seed)

    async def bench(ctx):
        await scenario(ctx, board)

    models = (board.memory_model, board.register_writes, board.register_reads, board.line)
    simulate(dut, bench, background=models, timeout=400_000)


def ok(sequence, payload=b""):
    return protocol.Response(Status.OK, sequence, payload)


def refused(status, sequence):
    return protocol.Response(status, sequence, b"")


def test_hello():
    async def scenario(ctx, board):
        response = await board.request(ctx, 3, Opcode.HELLO)
        assert protocol.parse_hello(response.payload) == {
            "version": protocol.VERSION,
            "max_payload": MAX_PAYLOAD,
            "memory_bytes": MEMORY_BYTES,
        }

    run(scenario)


def test_memory():
    async def scenario(ctx, board):
        rng, sequence = random.Random(1), 0
        for length in (1, 2, 7, 33, 0):
            address = rng.randrange(MEMORY_BYTES - length)
            data = bytes(rng.choice([END, ESCAPE, 0, 0xDC, 7]) for _ in range(length))
            sequence += 2
            assert await board.request(
                ctx, sequence, Opcode.WRITE_MEMORY, length, address, data
            ) == ok(sequence)
            assert board.memory[address : address + length] == data
            if length:
                assert await board.request(
                    ctx, sequence + 1, Opcode.READ_MEMORY, length, address
                ) == ok(sequence + 1, data)

    run(scenario)


def test_longest_payload():
    async def scenario(ctx, board):
        data = random.Random(2).randbytes(MAX_PAYLOAD)
        assert await board.request(ctx, 1, Opcode.WRITE_MEMORY, len(data), 5, data) == ok(1)
        assert board.memory[5 : 5 + len(data)] == data
        assert await board.request(ctx, 2, Opcode.READ_MEMORY, len(data), 5) == ok(2, data)

    run(scenario)


def test_registers():
    async def scenario(ctx, board):
        board.registers[0x20] = 0xC0DBBEEF
        value = struct.pack("<I", 0x12C0DB78)
        assert await board.request(ctx, 1, Opcode.READ_REGISTER, 4, 0x20) == ok(
            1, struct.pack("<I", 0xC0DBBEEF)
        )
        assert await board.request(ctx, 2, Opcode.WRITE_REGISTER, 4, 0x8, value) == ok(2)
        assert board.writes == [(0x8, 0x12C0DB78)]

    run(scenario)


def test_a_repeated_register_write_acts_once():
    async def scenario(ctx, board):
        one, two = struct.pack("<I", 1), struct.pack("<I", 2)
        for _ in range(3):
            assert await board.request(ctx, 5, Opcode.WRITE_REGISTER, 4, 0, one) == ok(5)
        assert board.writes == [(0, 1)]
        # another request with that number is no repetition, nor is one after something else
        assert await board.request(ctx, 6, Opcode.WRITE_REGISTER, 4, 0, two) == ok(6)
        assert await board.request(ctx, 7, Opcode.READ_REGISTER, 4, 0) == ok(7, bytes(4))
        assert await board.request(ctx, 6, Opcode.WRITE_REGISTER, 4, 0, two) == ok(6)
        assert board.writes == [(0, 1), (0, 2), (0, 2)]

    run(scenario)


def test_reset():
    async def scenario(ctx, board):
        assert await board.request(ctx, 1, Opcode.RESET) == ok(1)
        assert board.resets == 1

    run(scenario)


@pytest.mark.parametrize(
    ("status", "opcode", "length", "address", "payload"),
    [
        (Status.OUT_OF_RANGE, Opcode.READ_MEMORY, 4, MEMORY_BYTES - 3, b""),
        (Status.OUT_OF_RANGE, Opcode.READ_MEMORY, 1024, 0xFFFF_FFFF, b""),
        (Status.OUT_OF_RANGE, Opcode.WRITE_MEMORY, 2, MEMORY_BYTES - 1, b"ab"),
        (Status.OUT_OF_RANGE, Opcode.READ_REGISTER, 4, 0x1000, b""),
        (Status.OUT_OF_RANGE, Opcode.WRITE_REGISTER, 4, 0x2, b"abcd"),
        (Status.BUS_ERROR, Opcode.READ_REGISTER, 4, 0x800, b""),
        (Status.BUS_ERROR, Opcode.WRITE_REGISTER, 4, 0x800, b"abcd"),
        (Status.BAD_REQUEST, 0, 0, 0, b""),
        (Status.BAD_REQUEST, 99, 0, 0, b""),
        (Status.BAD_REQUEST, Opcode.READ_REGISTER, 3, 0, b""),
        (Status.BAD_REQUEST, Opcode.WRITE_REGISTER, 3, 0, b"abc"),
        (Status.BAD_REQUEST, Opcode.WRITE_MEMORY, 3, 0, b""),
        (Status.BAD_REQUEST, Opcode.HELLO, 1, 0, b"x"),
    ],
)
def test_refusals(status, opcode, length, address, payload):
    async def scenario(ctx, board):
        before = bytes(board.memory)
        found = await board.request(ctx, 9, opcode, length, address, payload)
        assert found == refused(status, 9)
        assert board.memory == before
        if status is not Status.BUS_ERROR:
            assert not board.writes

    run(scenario)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_requests_do_nothing_and_the_next_one_is_heard(seed):
    async def scenario(ctx, board):
        rng, before = random.Random(seed), bytes(board.memory)
        for number in range(12):
            line = bytearray(
                protocol.request(Opcode.WRITE_MEMORY, number, 9, 100, rng.randbytes(9))
            )
            broken = set()
            position = rng.randrange(len(line) - 2) + 1
            match rng.randrange(5):
                case 0:
                    line[position] ^= 1 << rng.randrange(8)
                case 1:
                    del line[position]
                case 2:
                    line[position] = END
                case 3:
                    line[position : position + 1] = rng.randbytes(4)
                case 4:
                    broken = {position}
            responses = await board.answer(ctx, line, broken)
            assert all(one.status is Status.BAD_FRAME for one in responses)
            assert board.memory == before
            assert await board.request(ctx, 200, Opcode.HELLO)
        data = rng.randbytes(9)
        assert await board.request(ctx, 201, Opcode.WRITE_MEMORY, 9, 100, data) == ok(201)
        assert board.memory[100:109] == data

    run(scenario, seed)


def test_lost_end_is_made_up_by_the_next_frame():
    async def scenario(ctx, board):
        first = protocol.request(Opcode.WRITE_MEMORY, 1, 2, 0, b"ab")
        assert await board.answer(ctx, first[:-1]) == []
        assert await board.answer(ctx, first) == [ok(1)]  # its first END ends the one before
        assert board.memory[:2] == b"ab"
        assert await board.request(ctx, 2, Opcode.READ_MEMORY, 2, 0) == ok(2, b"ab")

    run(scenario)


def test_too_long_a_frame_is_damaged():
    async def scenario(ctx, board):
        before = bytes(board.memory)
        header = struct.pack("<BBHI", Opcode.WRITE_MEMORY, 1, MAX_PAYLOAD, 0)
        line = protocol.frame(header + bytes(MAX_PAYLOAD + 1))
        (found,) = await board.answer(ctx, line)
        assert found.status is Status.BAD_FRAME
        assert board.memory == before

    run(scenario)
