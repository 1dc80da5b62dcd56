"""Serial line: 8 data bits, no parity, one stop bit."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import cdc, data, stream, wiring
from amaranth.lib.wiring import In, Out

DATA_BITS = 8
MIN_DIVISOR = 8  # clock cycles per bit that leave room for three samples in its middle


class Received(data.Struct):
    """A byte from the line; ``broken``: its stop bit was missing."""

    data: DATA_BITS
    broken: 1


class UartTransmitter(wiring.Component):
    """Send bytes, least significant bit first.

    A byte taken on ``i`` occupies the line for 10 * ``divisor`` cycles; ``i`` is ready while the
    line is idle.

    Parameters
    ----------
    divisor : clock cycles per bit

    Members
    -------
    i : In(stream.Signature(8))
    line : Out(1), high when idle
    """

    def __init__(self, divisor: int):
        _check(divisor)
        self._divisor = divisor
        super().__init__({"i": In(stream.Signature(DATA_BITS)), "line": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        shift = Signal(DATA_BITS + 1)  # what follows the bit on the line: data, stop bit
        left = Signal(range(DATA_BITS + 3))  # bits that are not over
        timer = Signal(range(self._divisor))
        m.d.comb += self.i.ready.eq(left == 0)
        with m.If(left == 0), m.If(self.i.valid):
            m.d.sync += [
                self.line.eq(0),
                shift.eq(Cat(self.i.payload, 1)),
                left.eq(DATA_BITS + 2),
                timer.eq(self._divisor - 1),
            ]
        with m.Elif(timer == 0):
            m.d.sync += [
                Cat(self.line, shift).eq(Cat(shift, 1)),
                left.eq(left - 1),
                timer.eq(self._divisor - 1),
            ]
        with m.Else():
            m.d.sync += timer.eq(timer - 1)
        return m


class UartReceiver(wiring.Component):
    """Receive bytes; each bit is the majority of three samples about its middle.

    ``valid`` is high for one cycle per byte, in the middle of its stop bit; there is no
    backpressure. A start bit shorter than half a bit is noise and ignored. After a byte without
    stop bit, which is delivered as broken, the receiver waits until the line is idle. Clocks of
    both ends may differ by 3 %.

    Parameters
    ----------
    divisor : clock cycles per bit, at least :data:`MIN_DIVISOR`

    Members
    -------
    line : In(1), asynchronous
    valid : Out(1)
    payload : Out(Received)
    """

    def __init__(self, divisor: int):
        _check(divisor)
        self._divisor = divisor
        super().__init__({
            "line": In(1, init=1), "valid": Out(1), "payload": Out(Received),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        line = Signal(init=1)
        m.submodules.synchroniser = cdc.FFSynchronizer(self.line, line, init=1)

        spacing = self._divisor // 8
        middle = self._divisor // 2
        timer = Signal(range(self._divisor))
        samples = Signal(2)  # the first two
        for sample, moment in enumerate((middle - spacing, middle)):
            with m.If(timer == moment):
                m.d.sync += samples[sample].eq(line)
        decided = Signal()
        m.d.comb += decided.eq(timer == middle + spacing)
        bit = Signal()
        m.d.comb += bit.eq((samples[0] & samples[1]) | (line & (samples[0] | samples[1])))

        with m.If(timer == self._divisor - 1):
            m.d.sync += timer.eq(0)
        with m.Else():
            m.d.sync += timer.eq(timer + 1)

        count = Signal(range(DATA_BITS))
        byte = Signal(DATA_BITS)
        m.d.comb += self.payload.data.eq(byte)
        with m.FSM():
            with m.State("Idle"), m.If(~line):
                m.d.sync += timer.eq(1)
                m.next = "Start"
            with m.State("Start"), m.If(decided):
                m.d.sync += count.eq(0)
                with m.If(bit):
                    m.next = "Idle"
                with m.Else():
                    m.next = "Data"
            with m.State("Data"), m.If(decided):
                m.d.sync += [byte.eq(Cat(byte[1:], bit)), count.eq(count + 1)]
                with m.If(count == DATA_BITS - 1):
                    m.next = "Stop"
            with m.State("Stop"), m.If(decided):
                m.d.comb += [self.valid.eq(1), self.payload.broken.eq(~bit)]
                m.next = "Wait"
                with m.If(bit):
                    m.next = "Idle"
            with m.State("Wait"), m.If(line):
                m.next = "Idle"
        return m


def _check(divisor: int) -> None:
    if divisor < MIN_DIVISOR:
        raise ValueError(f"a bit needs at least {MIN_DIVISOR} clock cycles, not {divisor}")
