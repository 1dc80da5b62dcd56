"""Writing side of the vector unit: a stream of channels to words of memory."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from twillcore.config import ADDRESS_BITS, Config
from twillcore.hw.ports import write_port


class WordWriter(wiring.Component):
    """Collect one channel of all lanes per cycle, and write a word of ``block`` channels.

    The word is written in the cycle after that of its last channel. The writer knows no slots: its
    client sees to it, by the latency of what it computes, that this is the slot of the vector unit.
    Throughput is one channel per cycle; there is no backpressure. A write beyond the memory is not
    done, and raises ``out_of_range`` in that cycle.

    Members
    -------
    start : In(1)
        Takes ``address``; channels may come from the next cycle on.
    address, row_stride, row_tiles, words : In
        Operands, as in the instruction; all but ``address`` stay until the end.
    valid : In(1)
    y : In(ArrayLayout(signed(bits), lanes))
    write : Out(write_port)
    done : Out(1)
        The last word of the tensor is written in this cycle.
    out_of_range : Out(1)
    """

    def __init__(self, config: Config, bits, depth):
        self._config = config
        self._bits = bits
        self._depth = depth
        word = data.ArrayLayout(data.ArrayLayout(signed(bits), config.block), config.lanes)
        super().__init__({
            "start": In(1),
            "address": In(ADDRESS_BITS),
            "row_stride": In(ADDRESS_BITS),
            "row_tiles": In(12),
            "words": In(12),
            "valid": In(1),
            "y": In(data.ArrayLayout(signed(bits), config.lanes)),
            "write": Out(write_port(ADDRESS_BITS, word)),
            "done": Out(1),
            "out_of_range": Out(1),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        config = self._config
        bits = self._bits
        address = Signal(
            ADDRESS_BITS + 1, reset_less=True
        )  # may pass the end before it is found out
        next_row = Signal(ADDRESS_BITS + 1, reset_less=True)
        words_left = Signal(12)
        tiles_left = Signal(12)
        position = Signal(range(config.block))
        full = Signal()
        fits = Signal()
        # Registers, since much hangs on them: words_left == 1 and tiles_left == 1.
        last_word, last_tile = Signal(), Signal()
        m.d.comb += [
            self.write.address.eq(address),
            self.write.enable.eq(full & fits),
            self.out_of_range.eq(full & ~fits),
            self.done.eq(full & fits & last_word & last_tile),
        ]
        m.d.sync += fits.eq(address < self._depth)  # it changes a word before it is used again
        m.d.sync += full.eq(self.valid & (position == config.block - 1))
        with m.If(self.start):
            m.d.sync += [
                address.eq(self.address),
                next_row.eq(self.address + self.row_stride),
                words_left.eq(self.words),
                last_word.eq(self.words == 1),
                tiles_left.eq(self.row_tiles),
                last_tile.eq(self.row_tiles == 1),
                position.eq(0),
            ]
        with m.Else():
            with m.If(self.valid):
                m.d.sync += position.eq(position + 1)
            with m.If(full):
                m.d.sync += [
                    address.eq(Mux(last_word, next_row, address + 1)),
                    words_left.eq(Mux(last_word, self.words, words_left - 1)),
                    last_word.eq(Mux(last_word, self.words == 1, words_left == 2)),
                ]
                with m.If(last_word):
                    m.d.sync += [
                        next_row.eq(next_row + self.row_stride),
                        tiles_left.eq(tiles_left - 1),
                        last_tile.eq(tiles_left == 2),
                    ]
        for lane in range(config.lanes):
            # A shift register needs no multiplexers, only a clock enable.
            channels = Signal(bits * config.block, reset_less=True, name=f"channels_{lane}")
            with m.If(self.valid):
                m.d.sync += channels.eq(Cat(channels[bits:], self.y[lane]))
            m.d.comb += self.write.data[lane].eq(channels)
        return m
