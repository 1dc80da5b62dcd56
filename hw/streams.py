"""Parts that carry streams and keep the shape of their payload."""

from amaranth.hdl import Cat, Module, Shape, Signal
from amaranth.lib import fifo, stream, wiring
from amaranth.lib.wiring import In, Out


class Queue(wiring.Component):
    """First in, first out.

    A payload taken on ``i`` in one cycle stands on ``o`` in the next if the queue was empty.
    Throughput is one payload per cycle. ``i`` is ready while fewer than ``depth`` payloads wait,
    whatever ``o`` does in that cycle.

    Parameters
    ----------
    shape
        Shape of the payload.
    depth
        Payloads that fit, at least 1.

    Members
    -------
    i : In(stream.Signature(shape))
    o : Out(stream.Signature(shape))
    level : Out(range(depth + 1)), how many payloads wait
    """

    def __init__(self, shape, depth):
        if depth < 1:
            raise ValueError(f"queue needs depth >= 1, not {depth}")
        self._depth = depth
        super().__init__({
            "i": In(stream.Signature(shape)),
            "o": Out(stream.Signature(shape)),
            "level": Out(range(depth + 1)),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        width = Shape.cast(self.i.signature.members["payload"].shape).width
        m.submodules.fifo = queue = fifo.SyncFIFO(width=width, depth=self._depth)
        m.d.comb += [
            queue.w_data.eq(self.i.payload),
            queue.w_en.eq(self.i.valid),
            self.i.ready.eq(queue.w_rdy),
            Cat(self.o.payload).eq(queue.r_data),
            self.o.valid.eq(queue.r_rdy),
            queue.r_en.eq(self.o.ready),
            self.level.eq(queue.level),
        ]
        return m


class RegisterSlice(wiring.Component):
    """Two registers in a stream's way, so that no path leads from one side to the other.

    A payload taken on ``i`` in one cycle stands on ``o`` in the next if nothing was waiting.
    Throughput is one payload per cycle. ``i`` is ready while fewer than two payloads wait, whatever
    ``o`` does in that cycle; ``i.ready``, ``o.valid`` and ``o.payload`` are registers.

    Parameters
    ----------
    shape
        Shape of the payload.

    Members
    -------
    i : In(stream.Signature(shape))
    o : Out(stream.Signature(shape))
    """

    def __init__(self, shape):
        self._shape = shape
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        first = Signal(self._shape, reset_less=True)  # on ``o``
        second = Signal(self._shape, reset_less=True)  # waits behind it
        empty = Signal(init=1)  # it does not
        moves = Signal()
        m.d.comb += [
            self.i.ready.eq(empty),
            self.o.payload.eq(first),
            moves.eq(~self.o.valid | self.o.ready),
        ]
        with m.If(moves):
            m.d.sync += [self.o.valid.eq(~empty | self.i.valid), empty.eq(1)]
            with m.If(empty):
                m.d.sync += first.eq(self.i.payload)
            with m.Else():
                m.d.sync += first.eq(second)
        with m.Elif(self.i.valid & empty):
            m.d.sync += empty.eq(0)
        with m.If(empty):
            m.d.sync += second.eq(self.i.payload)
        return m
