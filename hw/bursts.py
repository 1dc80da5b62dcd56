"""Runs of DRAM bytes, cut into AXI4 bursts."""

from amaranth.hdl import Cat, Const, Module, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from twillcore.config import Config
from twillcore.hw.axi import ADDRESS_BITS, BOUNDARY_BYTES

RUN_BEATS_BITS = 28  # 2**16 units of 2**12 bytes at most, in beats of 4 bytes, with headers
RUNS_BITS = 12

#: Runs of ``beats`` beats each; the first starts at byte ``address``, the next ``stride`` further.
TRANSFER = data.StructLayout({
    "address": ADDRESS_BITS, "stride": ADDRESS_BITS, "beats": RUN_BEATS_BITS, "runs": RUNS_BITS,
})  # fmt: skip

#: One AXI4 burst: first byte, beats - 1, and whether its transfer ends with it.
BURST = data.StructLayout({"address": ADDRESS_BITS, "length": 8, "last": 1})


class Bursts(wiring.Component):
    """Cut transfers into bursts: as long as ``axi_burst_beats``, the run and the 4 KiB allow.

    A transfer taken in cycle x gives its b-th burst in cycle x + 2 + b, one per cycle, without a
    gap between runs or transfers. Backpressure on ``o`` stalls all of it.

    Addresses and strides must be multiples of the beat in bytes; beats and runs at least 1.

    Members
    -------
    i : In(stream.Signature(TRANSFER))
    o : Out(stream.Signature(BURST)), registered
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__({
            "i": In(stream.Signature(TRANSFER)), "o": Out(stream.Signature(BURST)),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        beat_bytes, longest = self._config.axi_bytes, self._config.axi_burst_beats
        offset_bits = (beat_bytes - 1).bit_length()
        page_beats = BOUNDARY_BYTES // beat_bytes
        page_bits = page_beats.bit_length() - 1

        active = Signal()
        address = Signal(ADDRESS_BITS)  # of the next burst
        to_boundary = Signal(range(page_beats + 1))  # beats from there to the end of its page
        left = Signal(RUN_BEATS_BITS)  # beats of this run from there on
        next_run = Signal(ADDRESS_BITS)
        stride = Signal(ADDRESS_BITS)
        run_beats = Signal(RUN_BEATS_BITS)
        runs_left = Signal(RUNS_BITS)  # this one included

        def beats_to_boundary(of):
            return page_beats - of[offset_bits : offset_bits + page_bits]

        # What remains after a burst to the boundary, and after one of full length: both at once,
        # since a subtraction of the burst's length would wait for the comparisons.
        after_page = Signal(signed(RUN_BEATS_BITS + 1))
        after_longest = Signal(signed(RUN_BEATS_BITS + 1))
        page_first, run_ends = Signal(), Signal()
        m.d.comb += [
            after_page.eq(left - to_boundary),
            after_longest.eq(left - longest),
            page_first.eq(to_boundary <= longest),
            # the run's end is no further than either: both differences are 0 or negative
            run_ends.eq((after_page <= 0) & (after_longest <= 0)),
        ]

        advance, transfer_ends = Signal(), Signal()
        m.d.comb += [
            advance.eq(~self.o.valid | self.o.ready),
            transfer_ends.eq(run_ends & (runs_left == 1)),
            self.i.ready.eq(~active | (advance & transfer_ends)),
        ]
        page_number = address[offset_bits + page_bits :]
        with m.If(advance):
            m.d.sync += [
                self.o.valid.eq(active),
                self.o.payload.address.eq(address),
                self.o.payload.last.eq(transfer_ends),
            ]
            with m.If(run_ends):
                m.d.sync += [
                    self.o.payload.length.eq(left - 1),
                    address.eq(next_run),
                    to_boundary.eq(beats_to_boundary(next_run)),
                    next_run.eq(next_run + stride),
                    left.eq(run_beats),
                    runs_left.eq(runs_left - 1),
                ]
            with m.Elif(page_first):
                m.d.sync += [
                    self.o.payload.length.eq(to_boundary - 1),
                    address.eq(Cat(Const(0, offset_bits + page_bits), page_number + 1)),
                    to_boundary.eq(page_beats),
                    left.eq(after_page),
                ]
            with m.Else():
                m.d.sync += [
                    self.o.payload.length.eq(longest - 1),
                    address.eq(address + (longest << offset_bits)),
                    to_boundary.eq(to_boundary - longest),
                    left.eq(after_longest),
                ]
        with m.If(self.i.ready):
            i = self.i.payload
            m.d.sync += [
                active.eq(self.i.valid),
                address.eq(i.address),
                to_boundary.eq(beats_to_boundary(i.address)),
                left.eq(i.beats),
                next_run.eq(i.address + i.stride),
                stride.eq(i.stride),
                run_beats.eq(i.beats),
                runs_left.eq(i.runs),
            ]
        return m
