"""What every board design has inside: accelerator, memory and the host's link."""

from amaranth.hdl import (
    Cat,
    ClockDomain,
    ClockSignal,
    Instance,
    Module,
    ResetInserter,
    ResetSignal,
    Signal,
)
from amaranth.lib import cdc, wiring
from amaranth.lib.wiring import In, Out

from twillcore.config import Config
from twillcore.fpga.block_memory import BlockMemory
from twillcore.fpga.boards import Board
from twillcore.fpga.link import Link
from twillcore.fpga.uart import UartReceiver, UartTransmitter
from twillcore.hw.accelerator import Accelerator
from twillcore.registers import REGISTERS

RESET_CYCLES = 16
LEDS = ("idle", "done", "error", "alive")
_ALIVE_BITS = 25  # half a blink, in cycles: about a second


class System(wiring.Component):
    """The accelerator, block RAM as its memory, and the link that reaches both over a serial line.

    Parameters
    ----------
    config : of the accelerator
    memory_bytes : a power of two
    divisor : clock cycles per bit of the serial line

    Members
    -------
    rx, tx : In(1), Out(1)
        The serial line; ``rx`` is asynchronous.
    leds : Out(4)
        Idle (no program runs); done and error, from the end of a program on, as the host last
        read them in STATUS; alive, which blinks.
    """

    def __init__(self, config: Config, memory_bytes: int, divisor: int):
        self._config, self._memory_bytes, self._divisor = config, memory_bytes, divisor
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1), "leds": Out(len(LEDS))})

    def elaborate(self, platform):
        m = Module()
        accelerator = Accelerator(self._config)
        memory = BlockMemory(self._config.axi_data_bits, self._memory_bytes)
        m.submodules.receiver = receiver = UartReceiver(self._divisor)
        m.submodules.transmitter = transmitter = UartTransmitter(self._divisor)
        m.submodules.link = link = Link(self._memory_bytes)
        # Both sides of the bus, or one would wait for what the other has forgotten.
        fresh = ResetInserter(link.reset)
        m.submodules.accelerator = fresh(accelerator)
        m.submodules.memory = fresh(memory)
        wiring.connect(m, accelerator.m_axi, memory.bus)
        wiring.connect(m, link.memory, memory.bytes)
        wiring.connect(m, link.bus, accelerator.s_axi)
        wiring.connect(m, link.o, transmitter.i)
        m.d.comb += [
            receiver.line.eq(self.rx),
            link.i_valid.eq(receiver.valid),
            link.i.eq(receiver.payload),
            self.tx.eq(transmitter.line),
        ]

        fields = {field.name: field.offset for field in REGISTERS["STATUS"].fields}
        bus = link.bus
        alive = Signal(_ALIVE_BITS)
        status = Signal(32)
        reads_status = Signal()
        m.d.sync += alive.eq(alive + 1)
        with m.If(bus.arvalid & bus.arready):
            m.d.sync += reads_status.eq(bus.araddr == REGISTERS["STATUS"].offset)
        with m.If(accelerator.busy):
            m.d.sync += status.eq(0)
        with m.Elif(bus.rvalid & bus.rready & reads_status):
            m.d.sync += status.eq(bus.rdata)
        m.d.sync += self.leds.eq(
            Cat(~accelerator.busy, status[fields["done"]], status[fields["error"]], alive[-1])
        )
        return m


class BoardTop(wiring.Component):
    """:class:`System` at the pins of an ECP5 board: clock through a PLL, reset until it is stable.

    Members
    -------
    clk, rx : In(1)
    tx : Out(1)
    led : Out(4)
    keep_high : Out(1), only if the board has a pin that must be high
    """

    def __init__(self, board: Board, config: Config, memory_bytes: int, divisor: int):
        self._board = board
        self._system = System(config, memory_bytes, divisor)
        ports = {"clk": In(1), "rx": In(1), "tx": Out(1), "led": Out(len(LEDS))}
        if board.keep_high:
            ports["keep_high"] = Out(1)
        super().__init__(ports)

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = ClockDomain()
        locked = Signal()
        stable = Signal()
        m.submodules.pll = Instance(
            "EHXPLLL",
            **{f"p_{name}": value for name, value in self._board.pll.items()},
            i_CLKI=self.clk, i_CLKFB=ClockSignal(), i_RST=0, i_STDBY=0,
            i_PHASESEL0=0, i_PHASESEL1=0, i_PHASEDIR=1, i_PHASESTEP=1, i_PHASELOADREG=1,
            i_PLLWAKESYNC=0, i_ENCLKOP=0,
            o_CLKOP=ClockSignal(), o_LOCK=locked,
        )  # fmt: skip
        # Registers start as configuration leaves them, so reset needs no clock that already runs.
        m.submodules.synchroniser = cdc.FFSynchronizer(locked, stable, reset_less=True)
        waiting = Signal(RESET_CYCLES, init=(1 << RESET_CYCLES) - 1, reset_less=True)
        reset = Signal(init=1, reset_less=True)  # one register drives them all
        m.d.sync += [waiting.eq(Cat(~stable, waiting)), reset.eq(waiting.any())]
        m.d.comb += ResetSignal().eq(reset)

        m.submodules.system = system = self._system
        m.d.comb += [system.rx.eq(self.rx), self.tx.eq(system.tx), self.led.eq(system.leds)]
        if self._board.keep_high:
            m.d.comb += self.keep_high.eq(1)
        return m
