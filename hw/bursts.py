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
        address = Signal(ADDRESS_BITS, reset_less=True)  # of the next burst
        to_boundary = Signal(range(page_beats + 1))  # beats from there to the end of its page
        left = Signal(RUN_BEATS_BITS, reset_less=True)  # beats of this run from there on
        next_run = Signal(ADDRESS_BITS, reset_less=True)
        stride = Signal(ADDRESS_BITS, reset_less=True)
        run_beats = Signal(RUN_BEATS_BITS, reset_less=True)
        last_run = Signal()
        runs_after = Signal(RUNS_BITS, reset_less=True)  # this one not included

        # What ends the next burst. These comparisons are made a burst ahead, beside the
        # subtractions whose results they are about: every case says what they will be.
        page_first = Signal()  # the page ends no later than a burst of full length
        in_page, in_longest = Signal(), Signal()  # the run ends no later than the page, the burst
        run_in_longest = Signal()  # in_longest at the start of every run

        def offset(of):
            return of[offset_bits : offset_bits + page_bits]

        def at_start(start, beats):
            """Return (to_boundary, page_first, in_page) of a run that starts there."""
            ends = offset(start) + beats[: page_bits + 1]
            return (
                page_beats - offset(start),
                offset(start) >= page_beats - longest,
                ~beats[page_bits + 1 :].any() & (ends <= page_beats),
            )

        # left - to_boundary <= limit, in as many bits as that takes
        low_bits = page_bits + 2
        few = ~left[low_bits:].any()
        after_page = Signal(signed(low_bits + 1))
        m.d.comb += after_page.eq(left[:low_bits] - to_boundary)

        run_ends, advance, transfer_ends = Signal(), Signal(), Signal()
        m.d.comb += [
            run_ends.eq(in_page & in_longest),
            advance.eq(~self.o.valid | self.o.ready),
            transfer_ends.eq(run_ends & last_run),
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
                boundary, page, fits = at_start(next_run, run_beats)
                m.d.sync += [
                    self.o.payload.length.eq(left - 1),
                    address.eq(next_run),
                    next_run.eq(next_run + stride),
                    to_boundary.eq(boundary),
                    page_first.eq(page),
                    left.eq(run_beats),
                    in_page.eq(fits),
                    in_longest.eq(run_in_longest),
                    runs_after.eq(runs_after - 1),
                    last_run.eq(runs_after == 1),
                ]
            with m.Elif(page_first):
                m.d.sync += [
                    self.o.payload.length.eq(to_boundary - 1),
                    address.eq(Cat(Const(0, offset_bits + page_bits), page_number + 1)),
                    to_boundary.eq(page_beats),
                    page_first.eq(page_beats <= longest),
                    left.eq(left - to_boundary),
                    in_page.eq(few & (after_page <= page_beats)),
                    in_longest.eq(few & (after_page <= longest)),
                ]
            with m.Else():
                m.d.sync += [
                    self.o.payload.length.eq(longest - 1),
                    address.eq(address + (longest << offset_bits)),
                    to_boundary.eq(to_boundary - longest),
                    page_first.eq(to_boundary <= 2 * longest),
                    left.eq(left - longest),
                    in_longest.eq(left <= 2 * longest),  # in_page stays what it is
                ]
        with m.If(self.i.ready):
            i = self.i.payload
            boundary, page, fits = at_start(i.address, i.beats)
            m.d.sync += [
                active.eq(self.i.valid),
                address.eq(i.address),
                to_boundary.eq(boundary),
                page_first.eq(page),
                left.eq(i.beats),
                in_page.eq(fits),
                in_longest.eq(i.beats <= longest),
                run_in_longest.eq(i.beats <= longest),
                next_run.eq(i.address + i.stride),
                stride.eq(i.stride),
                run_beats.eq(i.beats),
                runs_after.eq(i.runs - 1),
                last_run.eq(i.runs == 1),
            ]
        return m
