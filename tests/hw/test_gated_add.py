"""Additions, inferred and with the carry cells of a family instantiated."""

import random
from pathlib import Path

import pytest
from amaranth.back import verilog
from amaranth.hdl import Module, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from twillcore.fpga.target import Target
from twillcore.hw.gated_add import chain_add, gated_add
from twillcore.sim.bench import simulate

CARRY4 = """
module CARRY4(input CI, CYINIT, input [3:0] DI, S, output [3:0] O, CO);
  wire [4:0] c = {CO, CI | CYINIT};
  assign O = S ^ c[3:0];
  assign CO = (S & c[3:0]) | (~S & DI);
endmodule
"""
CELLS = Path(__file__).parents[1] / "fpga" / "ecp5_cells.v"


class Sum(wiring.Component):
    """A gated addition by itself; the register is there for the sake of a clock."""

    def __init__(self, a_bits, b_bits):
        super().__init__({
            "a": In(signed(a_bits)), "b": In(signed(b_bits)), "gate": In(1),
            "total": Out(signed(b_bits)), "chained": Out(signed(b_bits + 1)),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.total.eq(gated_add(m, platform, self.a, self.b, self.gate, "sum"))
        # In another order, so that both operands have been the narrower one.
        bits = len(self.chained)
        m.d.sync += self.chained.eq(chain_add(m, platform, self.b, self.a, bits, "chain"))
        return m


def cases(a_bits, b_bits):
    """Yield (a, b, gate, sum in b_bits)."""
    rng = random.Random(0)

    def value(bits):
        low, high = -1 << bits - 1, (1 << bits - 1) - 1
        return rng.choice((low, high, -1, 0, 1, rng.randint(low, high), rng.randint(low, high)))

    for _ in range(300):
        a, b, gate = value(a_bits), value(b_bits), rng.randrange(2)
        half = 1 << b_bits - 1
        yield a, b, gate, (a + (b if gate else 0) + half) % (2 * half) - half


SIZES = pytest.mark.parametrize(("a_bits", "b_bits"), [(16, 18), (18, 27), (5, 5)])


@SIZES
def test_sum(a_bits, b_bits):
    dut = Sum(a_bits, b_bits)

    async def bench(ctx):
        for a, b, gate, expected in cases(a_bits, b_bits):
            ctx.set(dut.a, a)
            ctx.set(dut.b, b)
            ctx.set(dut.gate, gate)
            await ctx.tick()
            assert ctx.get(dut.total) == expected
            assert ctx.get(dut.chained) == a + b

    simulate(dut, bench)


@pytest.mark.verilator
@SIZES
@pytest.mark.parametrize("family", ["ecp5", "xc7"])
def test_carry_cells_are_the_same(family, a_bits, b_bits, monkeypatch):
    from twillcore.sim import interactive as handle

    convert = verilog.convert

    def with_cells(component, **options):
        text = convert(component, platform=Target(family), **options)
        assert {"ecp5": "CCU2C", "xc7": "CARRY4"}[family] in text
        cells = CELLS.read_text() if family == "ecp5" else CARRY4
        return "/* verilator lint_off PINMISSING */\n" + text + cells

    monkeypatch.setattr(handle.verilog, "convert", with_cells)
    simulator = handle.interactive(Sum(a_bits, b_bits))
    for a, b, gate, expected in cases(a_bits, b_bits):
        simulator.io.a = a & ((1 << a_bits) - 1)
        simulator.io.b = b & ((1 << b_bits) - 1)
        simulator.io.gate = gate
        simulator.clock.tick()
        assert int(simulator.io.total) == expected & ((1 << b_bits) - 1)
        assert int(simulator.io.chained) == (a + b) & ((2 << b_bits) - 1)
