"""The memory model of :mod:`twillcore.dram`, as a background bench on an AXI4 port."""

from collections import deque
from dataclasses import dataclass, field

from twillcore.dram import Dram
from twillcore.hw.axi import BOUNDARY_BYTES, Burst, Response

NEVER = -(1 << 60)


@dataclass
class BenchDram:
    """DRAM behind an AXI4 port; pass ``serve_reads`` and ``serve_writes`` as background benches.

    It checks what it is asked: bursts are INCR, of full beats, aligned, inside the memory, and do
    not cross 4 KiB; WLAST stands with the last beat.

    Attributes
    ----------
    dram
        Latency and rate. Followed to the cycle; cycle 0 is the first that the bench sees.
    memory
        The content; address 0 is its first byte.
    read_errors, write_errors
        Byte addresses; a beat that holds one of them is answered with SLVERR.
    reads, writes
        Accepted bursts as (cycle, id, address, beats).
    """

    dram: Dram
    memory: bytearray
    read_errors: set[int] = field(default_factory=set)
    write_errors: set[int] = field(default_factory=set)
    reads: list[tuple[int, int, int, int]] = field(default_factory=list)
    writes: list[tuple[int, int, int, int]] = field(default_factory=list)

    def _check(self, address, beats, size, burst, beat_bytes):
        end = address + beats * beat_bytes
        assert burst == Burst.INCR
        assert 1 << size == beat_bytes
        assert address % beat_bytes == 0, f"burst at {address:#x} is not aligned"
        assert end <= len(self.memory), f"burst at {address:#x} is outside the memory"
        assert address // BOUNDARY_BYTES == (end - 1) // BOUNDARY_BYTES, "burst crosses 4 KiB"

    @staticmethod
    def _hits(errors, address, beat_bytes):
        return not errors.isdisjoint(range(address, address + beat_bytes))

    def serve_reads(self, port):
        """Return a bench that serves the read channels of ``port`` (seen from the manager)."""
        beat_bytes = len(port.rdata) // 8

        async def bench(ctx):
            waiting = deque()  # bursts as [first cycle of data, id, address, beats left]
            last_taken = NEVER
            cycle = 0
            while True:
                ready = len(waiting) < self.dram.outstanding
                ctx.set(port.arready, ready)
                offered = bool(waiting) and cycle >= max(
                    waiting[0][0], last_taken + self.dram.beat_cycles
                )
                ctx.set(port.rvalid, offered)
                if offered:
                    _, rid, address, left = waiting[0]
                    data = self.memory[address : address + beat_bytes]
                    failed = self._hits(self.read_errors, address, beat_bytes)
                    ctx.set(port.rid, rid)
                    ctx.set(port.rdata, int.from_bytes(data, "little"))
                    ctx.set(port.rresp, Response.SLVERR if failed else Response.OKAY)
                    ctx.set(port.rlast, left == 1)
                _, _, arvalid, arid, araddr, arlen, arsize, arburst, rready = (
                    await ctx.tick().sample(
                        port.arvalid, port.arid, port.araddr, port.arlen, port.arsize,
                        port.arburst, port.rready,
                    )
                )  # fmt: skip
                if offered and rready:
                    last_taken = cycle
                    waiting[0][2] += beat_bytes
                    waiting[0][3] -= 1
                    if not waiting[0][3]:
                        waiting.popleft()
                if arvalid and ready:
                    self._check(araddr, arlen + 1, arsize, arburst, beat_bytes)
                    self.reads.append((cycle, arid, araddr, arlen + 1))
                    waiting.append([cycle + self.dram.latency, arid, araddr, arlen + 1])
                cycle += 1

        return bench

    def serve_writes(self, port):
        """Return a bench that serves the write channels of ``port`` (seen from the manager)."""
        beat_bytes = len(port.wdata) // 8

        async def bench(ctx):
            addresses = deque()  # bursts whose data have not all come, as (address, beats)
            data = deque()  # beats whose address has not come
            responses = deque()  # as (cycle, response)
            position, failed = 0, False  # in the first burst of addresses
            last_taken = NEVER
            cycle = 0
            ctx.set(port.awready, 1)
            while True:
                ready = cycle >= last_taken + self.dram.beat_cycles
                ctx.set(port.wready, ready)
                offered = bool(responses) and cycle >= responses[0][0]
                ctx.set(port.bvalid, offered)
                if offered:
                    ctx.set(port.bresp, responses[0][1])
                _, _, *address_channel, wvalid, wdata, wlast, bready = await ctx.tick().sample(
                    port.awvalid, port.awid, port.awaddr, port.awlen, port.awsize, port.awburst,
                    port.wvalid, port.wdata, port.wlast, port.bready,
                )  # fmt: skip
                awvalid, awid, awaddr, awlen, awsize, awburst = address_channel
                if offered and bready:
                    responses.popleft()
                if awvalid:
                    self._check(awaddr, awlen + 1, awsize, awburst, beat_bytes)
                    self.writes.append((cycle, awid, awaddr, awlen + 1))
                    addresses.append((awaddr, awlen + 1))
                if wvalid and ready:
                    last_taken = cycle
                    data.append((wdata, wlast))
                while addresses and data:
                    (address, beats), (beat, last) = addresses[0], data.popleft()
                    address += position * beat_bytes
                    self.memory[address : address + beat_bytes] = beat.to_bytes(
                        beat_bytes, "little"
                    )
                    failed |= self._hits(self.write_errors, address, beat_bytes)
                    position += 1
                    assert last == (position == beats), "WLAST at the wrong beat"
                    if position == beats:
                        response = Response.SLVERR if failed else Response.OKAY
                        responses.append((cycle + self.dram.latency, response))
                        addresses.popleft()
                        position, failed = 0, False
                cycle += 1

        return bench
