"""Parts that carry streams and keep the shape of their payload."""

from amaranth.hdl import Cat, Module, Shape
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
