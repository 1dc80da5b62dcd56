"""cocotb model of a memory on an AXI4 port, with random gaps, stalls and errors."""

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import cocotb
from cocotb.triggers import RisingEdge

from twillcore.hw.axi import BOUNDARY_BYTES, Burst, Response


class _Channel:
    """Signals of one AXI4 channel, and the rule that payloads hold until they are taken."""

    def __init__(self, dut: Any, prefix: str, names: tuple[str, ...]) -> None:
        channel = names[0].removesuffix("valid")
        self.valid, self.ready = dut[prefix + names[0]], dut[f"{prefix}{channel}ready"]
        self.fields = {name: dut[prefix + name] for name in names[1:]}
        self._waiting: dict[str, int] | None = None

    def sample(self) -> dict[str, int] | None:
        """Return what is transferred at this clock edge; checks that what waits does not change."""
        if not self.valid.value:
            assert self._waiting is None, "valid was taken back"
            return None
        values = {name: int(signal.value) for name, signal in self.fields.items()}
        assert self._waiting in (None, values), "payload changed while waiting"
        taken = bool(self.ready.value)
        self._waiting = None if taken else values
        return values if taken else None


def _check(address: dict[str, int], channel: str, beat_bytes: int, size: int) -> tuple[int, int]:
    """Check one burst, and return its first byte and its beats."""
    first, beats = address[f"{channel}addr"], address[f"{channel}len"] + 1
    end = first + beats * beat_bytes
    assert address[f"{channel}burst"] == Burst.INCR
    assert 1 << address[f"{channel}size"] == beat_bytes
    assert first % beat_bytes == 0, f"burst at {first:#x} is not aligned"
    assert end <= size, f"burst at {first:#x} is outside the memory"
    assert first // BOUNDARY_BYTES == (end - 1) // BOUNDARY_BYTES, "burst crosses 4 KiB"
    return first, beats


@dataclass
class AxiMemory:
    """A memory behind the port ``{name}__...`` of ``dut``; it checks the manager's manners.

    Attributes
    ----------
    gap, stall
        Probability of a cycle without valid on R or B, and without ready on AR, AW or W.
    read_errors, write_errors
        Byte addresses; a beat that holds one of them is answered with SLVERR.
    data_first
        The memory takes an address only once data stand on W, as AXI4 allows.
    """

    dut: Any
    name: str
    memory: bytearray
    rng: random.Random
    gap: float = 0.0
    stall: float = 0.0
    read_errors: set[int] = field(default_factory=set)
    write_errors: set[int] = field(default_factory=set)
    data_first: bool = False

    def serve_reads(self) -> None:
        """Start to serve AR and R."""
        cocotb.start_soon(self._reads())

    def serve_writes(self) -> None:
        """Start to serve AW, W and B."""
        cocotb.start_soon(self._writes())

    def _hits(self, errors: set[int], address: int, size: int) -> bool:
        return not errors.isdisjoint(range(address, address + size))

    async def _reads(self) -> None:
        dut, prefix = self.dut, f"{self.name}__"
        names = ("arvalid", "araddr", "arlen", "arsize", "arburst", "arid")
        channel = _Channel(dut, prefix, names)
        r = {n: dut[f"{prefix}r{n}"] for n in ("valid", "ready", "data", "resp", "last", "id")}
        beat_bytes = len(r["data"]) // 8
        waiting: deque[tuple[int, int, int]] = deque()  # beats as (id, address, is last)
        offered = False
        while True:
            if not offered:
                offered = bool(waiting) and self.rng.random() >= self.gap
                if offered:
                    rid, address, last = waiting.popleft()
                    data = self.memory[address : address + beat_bytes]
                    failed = self._hits(self.read_errors, address, beat_bytes)
                    r["id"].value, r["last"].value = rid, last
                    r["data"].value = int.from_bytes(data, "little")
                    r["resp"].value = Response.SLVERR if failed else Response.OKAY
            r["valid"].value = offered
            channel.ready.value = self.rng.random() >= self.stall
            await RisingEdge(dut.clk)
            if offered and r["ready"].value:
                offered = False
            if burst := channel.sample():
                first, beats = _check(burst, "ar", beat_bytes, len(self.memory))
                waiting.extend(
                    (burst["arid"], first + i * beat_bytes, i == beats - 1) for i in range(beats)
                )

    async def _writes(self) -> None:
        dut, prefix = self.dut, f"{self.name}__"
        names = ("awvalid", "awaddr", "awlen", "awsize", "awburst", "awid")
        addresses = _Channel(dut, prefix, names)
        data = _Channel(dut, prefix, ("wvalid", "wdata", "wstrb", "wlast"))
        b = {n: dut[f"{prefix}b{n}"] for n in ("valid", "ready", "resp", "id")}
        beat_bytes = len(data.fields["wdata"]) // 8
        bursts: deque[tuple[int, int]] = deque()
        beats: deque[dict[str, int]] = deque()
        responses: deque[Response] = deque()
        position, failed, offered = 0, False, False
        while True:
            if not offered:
                offered = bool(responses) and self.rng.random() >= self.gap
                if offered:
                    b["resp"].value, b["id"].value = responses.popleft(), 0
            b["valid"].value = offered
            data_came = bool(data.valid.value) if self.data_first else True
            addresses.ready.value = data_came and self.rng.random() >= self.stall
            data.ready.value = self.rng.random() >= self.stall
            await RisingEdge(dut.clk)
            if offered and b["ready"].value:
                offered = False
            if burst := addresses.sample():
                bursts.append(_check(burst, "aw", beat_bytes, len(self.memory)))
            if beat := data.sample():
                beats.append(beat)
            while bursts and beats:
                (first, count), beat = bursts[0], beats.popleft()
                at = first + position * beat_bytes
                assert beat["wstrb"] == (1 << beat_bytes) - 1
                self.memory[at : at + beat_bytes] = beat["wdata"].to_bytes(beat_bytes, "little")
                failed |= self._hits(self.write_errors, at, beat_bytes)
                position += 1
                assert beat["wlast"] == (position == count), "WLAST at the wrong beat"
                if position == count:
                    responses.append(Response.SLVERR if failed else Response.OKAY)
                    bursts.popleft()
                    position, failed = 0, False
