"""cocotb bench of :class:`twillcore.hw.registers.Registers`: AXI4-Lite with random stalls."""

import random

import cocotb
from cocotb.queue import Queue
from cocotb.triggers import RisingEdge, with_timeout

from twillcore.hw.axi import Response
from twillcore.registers import REGISTERS, Access
from twillcore.sim.streams import reset

BY_OFFSET = {register.offset: register for register in REGISTERS.values()}
INPUTS = [r.name.lower() for r in REGISTERS.values() if r.access is Access.READ]
COMMANDS = [r.name.lower() for r in REGISTERS.values() if r.access is Access.WRITE]


class Sender:
    """Drive one channel towards the slave; ``gap`` is the probability of an idle cycle."""

    def __init__(self, dut, channel, fields, gap, rng):
        self.dut, self.channel, self.fields, self.gap, self.rng = dut, channel, fields, gap, rng
        self.queue = Queue()
        cocotb.start_soon(self._run())

    def put(self, *values):
        self.queue.put_nowait(values)

    async def _run(self):
        valid, ready = (self.dut[f"bus__{self.channel}{name}"] for name in ("valid", "ready"))
        while True:
            valid.value = 0
            values = await self.queue.get()
            while self.rng.random() < self.gap:
                await RisingEdge(self.dut.clk)
            for field, value in zip(self.fields, values, strict=True):
                self.dut[f"bus__{field}"].value = value
            valid.value = 1
            await RisingEdge(self.dut.clk)
            while not ready.value:
                await RisingEdge(self.dut.clk)


class Receiver:
    """Take responses of one channel, and see that a stalled one does not change."""

    def __init__(self, dut, channel, fields, stall, rng):
        self.dut, self.channel, self.fields, self.stall, self.rng = dut, channel, fields, stall, rng
        self.queue = Queue()
        cocotb.start_soon(self._run())

    async def _run(self):
        valid, ready = (self.dut[f"bus__{self.channel}{name}"] for name in ("valid", "ready"))
        waiting = None
        while True:
            ready.value = self.rng.random() >= self.stall
            await RisingEdge(self.dut.clk)
            values = None
            if valid.value:
                values = tuple(self.dut[f"bus__{f}"].value.to_unsigned() for f in self.fields)
            if waiting is not None:
                assert values == waiting, f"{self.channel} changed while it was stalled"
            waiting = None if ready.value else values
            if values is not None and ready.value:
                self.queue.put_nowait(values)


@cocotb.test()
@cocotb.parametrize(gap=[0.0, 0.5], stall=[0.0, 0.5])
async def matches_the_table(dut, gap, stall):
    """Random reads and writes behave as the register table says."""
    rng = random.Random(cocotb.RANDOM_SEED)
    quiet = dict.fromkeys(("bus__awvalid", "bus__wvalid", "bus__arvalid"), 0)
    await reset(dut, **quiet, bus__bready=0, bus__rready=0, **dict.fromkeys(INPUTS, 0))
    values = {r.name.lower(): r.init for r in REGISTERS.values() if r.access is not Access.WRITE}
    for name in INPUTS:
        values[name] = rng.getrandbits(32)
        dut[name].value = values[name]

    aw, ar = (Sender(dut, c, [f"{c}addr"], gap, rng) for c in ("aw", "ar"))
    w = Sender(dut, "w", ["wdata", "wstrb"], gap, rng)
    b = Receiver(dut, "b", ["bresp"], stall, rng)
    r = Receiver(dut, "r", ["rdata", "rresp"], stall, rng)
    pulses = Pulses(dut)

    offsets = [*BY_OFFSET, *(REGISTERS[name].offset for name in ("BASE", "WATCHDOG")), 0x034, 0xFFC]
    expected_pulses = []
    for _ in range(150):
        offset = rng.choice(offsets)
        register = BY_OFFSET.get(offset)
        if rng.random() < 0.5:
            data, strobe = rng.getrandbits(32), rng.getrandbits(4)
            aw.put(offset)
            w.put(data, strobe)
            (response,) = await with_timeout(b.queue.get(), 2, "us")
            writable = register is not None and register.access is not Access.READ
            assert response == (Response.OKAY if writable else Response.SLVERR)
            mask = sum(0xFF << 8 * i for i in range(4) if strobe >> i & 1)
            if writable and register.access is Access.WRITE:
                expected_pulses.append((register.name.lower(), data & mask))
            elif writable:
                name = register.name.lower()
                values[name] = values[name] & ~mask | data & mask
                assert dut[name].value.to_unsigned() == values[name]
        else:
            ar.put(offset)
            data, response = await with_timeout(r.queue.get(), 2, "us")
            assert response == (Response.SLVERR if register is None else Response.OKAY)
            assert data == (values.get(register.name.lower(), 0) if register else 0)
    assert pulses.seen == [pulse for pulse in expected_pulses if pulse[1]]


class Pulses:
    """Values of the registers that act once, cycle by cycle, without the zeros."""

    def __init__(self, dut):
        self.dut, self.seen = dut, []
        cocotb.start_soon(self._run())

    async def _run(self):
        while True:
            await RisingEdge(self.dut.clk)
            for name in COMMANDS:
                if value := self.dut[name].value.to_unsigned():
                    self.seen.append((name, value))


@cocotb.test()
async def address_and_data_may_come_in_any_order(dut):
    """Offer one half of a write: nothing may happen before the other."""
    await reset(dut, bus__awvalid=0, bus__wvalid=0, bus__arvalid=0, bus__bready=1, bus__rready=1)
    for first, second in (("aw", "w"), ("w", "aw")):
        value = REGISTERS["BASE"].offset + ord(first[-1])
        dut.bus__awaddr.value = REGISTERS["BASE"].offset
        dut.bus__wdata.value = value
        dut.bus__wstrb.value = 0xF
        dut[f"bus__{first}valid"].value = 1
        for _ in range(5):
            await RisingEdge(dut.clk)
            assert not dut[f"bus__{first}ready"].value
            assert not dut.bus__bvalid.value
        dut[f"bus__{second}valid"].value = 1
        await RisingEdge(dut.clk)
        assert dut.bus__awready.value
        assert dut.bus__wready.value
        dut.bus__awvalid.value = dut.bus__wvalid.value = 0
        await RisingEdge(dut.clk)
        assert dut.bus__bvalid.value
        assert dut.base.value.to_unsigned() == value
