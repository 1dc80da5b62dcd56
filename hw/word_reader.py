"""Reading side of the vector unit: words of memory to a stream of channels."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from twillcore.config import ADDRESS_BITS, Config
from twillcore.hw.delay import valid_chain
from twillcore.hw.layouts import activation_word, wide_word
from twillcore.hw.ports import PHASE_BITS, read_port
from twillcore.timing import SHARED_READ_CYCLES


class WordReader(wiring.Component):
    """Read a tensor, row tile by row tile, word by word; give one channel of all lanes per cycle.

    A word is read in slot ``slot`` of the frame, from the wide or the activation memory (int8 is
    sign-extended). Channel p of a word that is read in cycle t is valid in cycle
    ``t + READ_LATENCY + p``. Throughput is one channel per cycle without gaps: a word per
    ``block / 8`` frames. There is no backpressure; the start of a row tile, its *opening*, waits
    for ``permit``, and until ``gap`` frames lie between it and the previous opening.

    ``start`` loads the operands; the first read may take place in the next cycle. A read beyond the
    memory is not done, and raises ``out_of_range`` in that cycle.

    Members
    -------
    phase : In(3)
    start : In(1)
    wide, address, row_stride, row_tiles, words : In
        Operands, as in the instruction; ``wide`` and those of the row stay until the end.
    gap : In(4)
        Frames from one opening to the next, less one, if the row tile's words take less.
    permit : In(1)
    wide_read, activation_read : Out(read_port)
    opening : Out(1)
        The first word of a row tile is read in this cycle.
    valid, first, last : Out(1)
        A channel is there; it is the first or last one of its row tile.
    x : Out(ArrayLayout(signed(16), lanes))
    out_of_range : Out(1)
    """

    READ_LATENCY = SHARED_READ_CYCLES + 2

    def __init__(self, config: Config, slot):
        self._config = config
        self._slot = int(slot)
        super().__init__({
            "phase": In(PHASE_BITS),
            "start": In(1),
            "wide": In(1),
            "address": In(ADDRESS_BITS),
            "row_stride": In(ADDRESS_BITS),
            "row_tiles": In(12),
            "words": In(12),
            "gap": In(4),
            "permit": In(1),
            "wide_read": Out(read_port(ADDRESS_BITS, wide_word(config))),
            "activation_read": Out(read_port(ADDRESS_BITS, activation_word(config))),
            "opening": Out(1),
            "valid": Out(1),
            "first": Out(1),
            "last": Out(1),
            "x": Out(data.ArrayLayout(signed(16), config.lanes)),
            "out_of_range": Out(1),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        config = self._config
        block = config.block

        # One bit more than an address: base + stride may pass the end before it is found out.
        address = Signal(ADDRESS_BITS + 1, reset_less=True)
        next_row = Signal(ADDRESS_BITS + 1, reset_less=True)
        words_left = Signal(12)
        tiles_left = Signal(12)
        active = Signal()
        at_opening = Signal()
        frames_to_wait = Signal(4)
        skip = Signal()  # a block of 16 channels keeps the channel side busy for a second frame
        turn = Signal()
        want = Signal()
        fits = Signal()
        last_word = Signal()  # words_left == 1
        m.d.comb += [
            turn.eq(active & (self.phase == self._slot)),
            want.eq(turn & ~skip & (~at_opening | (self.permit & ~frames_to_wait.any()))),
            self.opening.eq(want & at_opening),
            self.out_of_range.eq(want & ~fits),
            self.wide_read.address.eq(address),
            self.wide_read.enable.eq(want & fits & self.wide),
            self.activation_read.address.eq(address),
            self.activation_read.enable.eq(want & fits & ~self.wide),
        ]

        def is_inside(of):
            return Mux(self.wide, of < config.wide_depth, of < config.activation_depth)

        m.d.sync += fits.eq(is_inside(address))  # it changes a frame before it is used again
        with m.If(self.start):
            m.d.sync += [
                address.eq(self.address),
                fits.eq(is_inside(self.address)),
                next_row.eq(self.address + self.row_stride),
                words_left.eq(self.words),
                last_word.eq(self.words == 1),
                tiles_left.eq(self.row_tiles),
                active.eq(1),
                at_opening.eq(1),
                frames_to_wait.eq(0),
                skip.eq(0),
            ]
        with m.Elif(turn):
            with m.If(frames_to_wait.any()):
                m.d.sync += frames_to_wait.eq(frames_to_wait - 1)
            if block > 8:
                m.d.sync += skip.eq(want)
            with m.If(self.opening):
                m.d.sync += frames_to_wait.eq(self.gap)
            with m.If(want):
                m.d.sync += [
                    at_opening.eq(last_word),
                    address.eq(Mux(last_word, next_row, address + 1)),
                    words_left.eq(Mux(last_word, self.words, words_left - 1)),
                    last_word.eq(Mux(last_word, self.words == 1, words_left == 2)),
                ]
                with m.If(last_word):
                    m.d.sync += [
                        next_row.eq(next_row + self.row_stride),
                        tiles_left.eq(tiles_left - 1),
                        active.eq(tiles_left != 1),
                    ]

        # The word stays in `held` for exactly the cycles in which its channels leave.
        *_, loading = valid_chain(m, want & fits, SHARED_READ_CYCLES, "loading")
        *_, loading_first = valid_chain(m, at_opening, SHARED_READ_CYCLES, "loading_first")
        *_, loading_last = valid_chain(m, last_word, SHARED_READ_CYCLES, "loading_last")
        held_first = Signal()
        held_last = Signal()
        emitting = Signal()
        position = Signal(range(block))
        final = Signal()
        m.d.comb += final.eq(position == block - 1)
        m.d.sync += self.valid.eq(emitting)
        with m.If(loading):
            m.d.sync += [
                position.eq(0),
                emitting.eq(1),
                held_first.eq(loading_first),
                held_last.eq(loading_last),
            ]
        with m.Elif(emitting):
            m.d.sync += [position.eq(position + 1), emitting.eq(~final)]
        with m.If(emitting):
            m.d.sync += [
                self.first.eq(held_first & (position == 0)),
                self.last.eq(held_last & final),
            ]
        for lane in range(config.lanes):
            held = Signal(data.ArrayLayout(signed(16), block), reset_less=True, name=f"held_{lane}")
            x = Signal(signed(16), reset_less=True, name=f"x_{lane}")
            with m.If(loading):
                with m.If(self.wide):
                    m.d.sync += held.eq(self.wide_read.data[lane])
                with m.Else():
                    for channel in range(block):
                        m.d.sync += held[channel].eq(self.activation_read.data[lane][channel])
            with m.If(emitting):
                m.d.sync += x.eq(held[position])
            m.d.comb += self.x[lane].eq(x)
        return m
