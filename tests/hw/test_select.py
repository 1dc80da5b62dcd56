"""The selection of a word, inferred and with the multiplexers of a family instantiated."""

import random

import pytest
from amaranth.back import verilog
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from twillcore.fpga.target import Target
from twillcore.hw.select import select_value, select_word
from twillcore.sim.bench import simulate

BITS = 8
CELLS = """
module MUXF7(input I0, I1, S, output O); assign O = S ? I1 : I0; endmodule
module MUXF8(input I0, I1, S, output O); assign O = S ? I1 : I0; endmodule
module PFUMX(input ALUT, BLUT, C0, output Z); assign Z = C0 ? ALUT : BLUT; endmodule
module L6MUX21(input D0, D1, SD, output Z); assign Z = SD ? D1 : D0; endmodule
"""


class Selector(wiring.Component):
    """A selector by itself; the register is there for the sake of a clock."""

    def __init__(self, count):
        super().__init__({
            "words": In(count * BITS), "position": In(range(count)), "word": Out(BITS),
            "value": Out(BITS),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        word = select_word(m, platform, self.words, self.position, BITS, "selector")
        values = [self.words.word_select(n, BITS) for n in range(len(self.words) // BITS)]
        value = select_value(m, platform, values, self.position, "value")
        m.d.sync += [self.word.eq(word), self.value.eq(value)]
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
            assert ctx.get(dut.word) == ctx.get(dut.value) == word

    simulate(dut, bench)


@pytest.mark.verilator
@pytest.mark.parametrize(
    ("family", "count", "cell", "cells"),
    [("xc7", 8, "MUXF7", 1), ("xc7", 16, "MUXF8", 1), ("ecp5", 8, "PFUMX", 2),
     ("ecp5", 16, "L6MUX21", 3)],
)  # fmt: skip
def test_multiplexers_of_a_family_are_the_same(family, count, cell, cells, monkeypatch):
    from twillcore.sim import interactive as handle

    convert = verilog.convert

    def with_cells(component, **options):
        text = convert(component, platform=Target(family), **options)
        assert text.count(f"  {cell} ") == 2 * BITS * cells
        return text + CELLS

    monkeypatch.setattr(handle.verilog, "convert", with_cells)
    simulator = handle.interactive(Selector(count))
    for words, position, word in cases(count):
        simulator.io.words = words
        simulator.io.position = position
        simulator.clock.tick()
        assert int(simulator.io.word) == int(simulator.io.value) == word
