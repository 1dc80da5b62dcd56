"""The gated addition, inferred and with ECP5's carry cells instantiated."""

import random
from pathlib import Path

import pytest
from amaranth.back import verilog
from amaranth.hdl import Module, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from twillcore.fpga.target import Target
from twillcore.hw.gated_add import gated_add
from twillcore.sim.bench import simulate

CELLS = Path(__file__).parents[1] / "fpga" / "ecp5_cells.v"


class Sum(wiring.Component):
    """A gated addition by itself; the register is there for the sake of a clock."""

    def __init__(self, a_bits, b_bits):
        super().__init__({
            "a": In(signed(a_bits)), "b": In(signed(b_bits)), "gate": In(1),
            "total": Out(signed(b_bits)),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.total.eq(gated_add(m, platform, self.a, self.b, self.gate, "sum"))
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

    simulate(dut, bench)


@pytest.mark.verilator
@SIZES
def test_carry_cells_of_ecp5_are_the_same(a_bits, b_bits, monkeypatch):
    from twillcore.sim import interactive as handle

    convert = verilog.convert

    def with_cells(component, **options):
        text = convert(component, platform=Target("ecp5"), **options)
        assert "CCU2C" in text
        return "/* verilator lint_off PINMISSING */\n" + text + CELLS.read_text()

    monkeypatch.setattr(handle.verilog, "convert", with_cells)
    simulator = handle.interactive(Sum(a_bits, b_bits))
    for a, b, gate, expected in cases(a_bits, b_bits):
        simulator.io.a = a & ((1 << a_bits) - 1)
        simulator.io.b = b & ((1 << b_bits) - 1)
        simulator.io.gate = gate
        simulator.clock.tick()
        assert int(simulator.io.total) == expected & ((1 << b_bits) - 1)
