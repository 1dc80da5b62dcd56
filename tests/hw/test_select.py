"""The selection of a word, inferred and with the multiplexers of 7-series instantiated."""

import random

import pytest
from amaranth.back import verilog
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from twillcore.fpga.target import Target
from twillcore.hw.select import select_word
from twillcore.sim.bench import simulate

BITS = 8
CELLS = "".join(
    f"module {name}(input I0, I1, S, output O); assign O = S ? I1 : I0; endmodule\n"
    for name in ("MUXF7", "MUXF8")
)


class Selector(wiring.Component):
    """A selector by itself; the register is there for the sake of a clock."""

    def __init__(self, count):
        super().__init__({
            "words": In(count * BITS), "position": In(range(count)), "word": Out(BITS)
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        word = select_word(m, platform, self.words, self.position, BITS, "selector")
        m.d.sync += self.word.eq(word)
        return m


def cases(count):
    """Yield (words, position, word)."""
    rng = random.Random(0)
    for n in range(5 * count):
        words = [rng.randrange(1 << BITS) for _ in range(count)]
        packed = sum(word << BITS * i for i, word in enumerate(words))
        yield packed, n % count, words[n % count]


@pytest.mark.parametrize("count", [8, 16])
def test_word(count):
    dut = Selector(count)

    async def bench(ctx):
        for words, position, word in cases(count):
            ctx.set(dut.words, words)
            ctx.set(dut.position, position)
            await ctx.tick()
            assert ctx.get(dut.word) == word

    simulate(dut, bench)


@pytest.mark.verilator
@pytest.mark.parametrize("count", [8, 16])
def test_multiplexers_of_7_series_are_the_same(count, monkeypatch):
    from twillcore.sim import interactive as handle

    convert = verilog.convert

    def with_cells(component, **options):
        text = convert(component, platform=Target("xc7"), **options)
        assert text.count("MUXF8 ") == (BITS if count == 16 else 0)
        return text + CELLS

    monkeypatch.setattr(handle.verilog, "convert", with_cells)
    simulator = handle.interactive(Selector(count))
    for words, position, word in cases(count):
        simulator.io.words = words
        simulator.io.position = position
        simulator.clock.tick()
        assert int(simulator.io.word) == word
