"""Frames of :mod:`twillcore.fpga.protocol` to and from bytes on the line."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import crc, data, stream, wiring
from amaranth.lib.wiring import In, Out

from twillcore.fpga.protocol import CRC, CRC_BYTES, END, ESCAPE, ESCAPES
from twillcore.fpga.uart import Received


def checksum_processor() -> crc.Processor:
    """Return the hardware of :func:`twillcore.fpga.protocol.checksum`, a byte per cycle."""
    return crc.Algorithm(**CRC)(data_width=8).create()


class Deframer(wiring.Component):
    """Undo the escapes of received bytes and check the frame's checksum.

    All outputs follow ``i_valid`` in the same cycle. After ``clear`` everything up to the next END
    is dropped. Bytes must be at least two cycles apart.

    Members
    -------
    i_valid : In(1)
    i : In(Received)
    clear : In(1)
    valid, data : Out(1), Out(8)
        A byte of the frame: header, payload or checksum.
    end : Out(1)
        The frame ends; also at the END before the first byte of a frame.
    good : Out(1)
        With ``end``: checksum, escapes and stop bits of all its bytes were right.
    """

    i_valid: In(1)
    i: In(Received)
    clear: In(1)
    valid: Out(1)
    data: Out(8)
    end: Out(1)
    good: Out(1)

    def elaborate(self, platform):
        m = Module()
        m.submodules.checksum = checksum = checksum_processor()
        inside = Signal()
        escaped = Signal()
        damaged = Signal()

        plain = Signal(8)
        known = Signal()
        m.d.comb += [plain.eq(self.i.data), known.eq(~escaped)]
        with m.If(escaped), m.Switch(self.i.data):
            for byte, after in ESCAPES.items():
                with m.Case(after):
                    m.d.comb += [plain.eq(byte), known.eq(1)]

        m.d.comb += [
            self.data.eq(plain),
            self.good.eq(checksum.match_detected & ~damaged & ~escaped & ~self.i.broken),
            checksum.data.eq(plain),
            checksum.valid.eq(self.valid),
            checksum.start.eq(self.end | self.clear),
        ]
        with m.If(self.i_valid):
            with m.If(self.i.data == END):
                m.d.comb += self.end.eq(inside)
                m.d.sync += [inside.eq(1), escaped.eq(0), damaged.eq(self.i.broken)]
            with m.Elif(inside):
                m.d.comb += self.valid.eq(escaped | (self.i.data != ESCAPE))
                m.d.sync += [
                    escaped.eq(~escaped & (self.i.data == ESCAPE)),
                    damaged.eq(damaged | self.i.broken | ~known),
                ]
        with m.If(self.clear):
            m.d.sync += [inside.eq(0), escaped.eq(0), damaged.eq(0)]
        return m


class Content(data.Struct):
    """A byte of a frame's content; the checksum goes after the ``last``."""

    data: 8
    last: 1


class Framer(wiring.Component):
    """Frame content: END, the content escaped, its checksum escaped, END.

    One byte on ``o`` per cycle at most; two for each that has to be escaped. Backpressure on ``o``
    stalls ``i``.

    Members
    -------
    i : In(stream.Signature(Content))
    o : Out(stream.Signature(8))
    """

    i: In(stream.Signature(Content))
    o: Out(stream.Signature(8))

    def elaborate(self, platform):
        m = Module()
        m.submodules.checksum = checksum = checksum_processor()
        sum_bytes = data.View(data.ArrayLayout(8, CRC_BYTES), checksum.crc)
        index = Signal(range(CRC_BYTES))
        plain = Signal(8)
        offered = Signal()
        taken = Signal()
        second = Signal()  # ESCAPE is out, what follows it is next

        # What goes out for `plain`; it is taken with its last byte.
        m.d.comb += self.o.payload.eq(plain)
        for byte, after in ESCAPES.items():
            with m.If(offered & (plain == byte)):
                m.d.comb += self.o.payload.eq(Mux(second, after, ESCAPE))
                with m.If(self.o.ready):
                    m.d.sync += second.eq(~second)
        needs_escape = sum((plain == byte) for byte in ESCAPES)
        m.d.comb += taken.eq(offered & self.o.ready & (second | (needs_escape == 0)))

        m.d.comb += [checksum.data.eq(plain), self.i.ready.eq(0)]
        with m.FSM():
            with m.State("Open"):
                m.d.comb += [self.o.valid.eq(self.i.valid), checksum.start.eq(1)]
                m.d.comb += plain.eq(END)
                with m.If(self.i.valid & self.o.ready):
                    m.next = "Content"
            with m.State("Content"):
                m.d.comb += [
                    offered.eq(self.i.valid),
                    plain.eq(self.i.payload.data),
                    self.o.valid.eq(self.i.valid),
                    self.i.ready.eq(taken),
                    checksum.valid.eq(taken),
                ]
                with m.If(taken & self.i.payload.last):
                    m.next = "Checksum"
            with m.State("Checksum"):
                m.d.comb += [
                    offered.eq(1), self.o.valid.eq(1), plain.eq(sum_bytes[index]),
                ]  # fmt: skip
                with m.If(taken):
                    m.d.sync += index.eq(index + 1)
                    with m.If(index == CRC_BYTES - 1):
                        m.next = "Close"
            with m.State("Close"):
                m.d.comb += [self.o.valid.eq(1), plain.eq(END)]
                with m.If(self.o.ready):
                    m.next = "Open"
        return m
