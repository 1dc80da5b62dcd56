"""Products of every width, with the multiplier inferred and with ECP5's block instantiated."""

import random
from pathlib import Path

import pytest
from amaranth.back import verilog

from twillcore.fpga.target import Target
from twillcore.hw import multiplier
from twillcore.hw.multiplier import LATENCY, WIDE_LATENCY, Multiplier
from twillcore.sim.bench import simulate

CELLS = Path(__file__).parents[1] / "fpga" / "ecp5_cells.v"
CASES = [(8, 8, False), (18, 18, False), (16, 5, False), (33, 18, True), (22, 16, True),
         (41, 18, True), (8, 8, True)]  # fmt: skip


def factors(a_bits, b_bits, count):
    rng = random.Random(0)

    def factor(bits):
        extremes = (-1 << bits - 1, (1 << bits - 1) - 1, -1, 0, 1)
        return rng.choice(
            (*extremes, *(rng.randrange(-1 << bits - 1, 1 << bits - 1) for _ in "12345"))
        )

    return [(factor(a_bits), factor(b_bits)) for _ in range(count)]


@pytest.mark.parametrize(("a_bits", "b_bits", "wide"), CASES)
def test_product_follows_its_factors(a_bits, b_bits, wide):
    dut = Multiplier(a_bits, b_bits, wide)
    pairs = factors(a_bits, b_bits, 100)
    latency = WIDE_LATENCY if wide else LATENCY
    products = []

    async def bench(ctx):
        for a, b in pairs + [(0, 0)] * latency:
            products.append(ctx.get(dut.product))
            ctx.set(dut.a, a)
            ctx.set(dut.b, b)
            await ctx.tick()

    simulate(dut, bench)
    assert products[latency:] == [a * b for a, b in pairs]


@pytest.mark.verilator
@pytest.mark.parametrize(("a_bits", "b_bits", "wide"), [(8, 8, False), (33, 18, True)])
def test_block_of_ecp5_is_the_same(a_bits, b_bits, wide, monkeypatch):
    from twillcore.sim import interactive as handle

    convert = verilog.convert

    def with_blocks(component, **options):
        text = convert(component, platform=Target("ecp5"), **options)
        assert "MULT18X18D" in text
        return "/* verilator lint_off PINMISSING */\n" + text + CELLS.read_text()

    monkeypatch.setattr(handle.verilog, "convert", with_blocks)
    simulator = handle.interactive(Multiplier(a_bits, b_bits, wide))
    latency = WIDE_LATENCY if wide else LATENCY
    pairs = factors(a_bits, b_bits, 100)
    products = []
    for a, b in pairs + [(0, 0)] * latency:
        products.append(int(simulator.io.product))
        simulator.io.a = a & ((1 << a_bits) - 1)
        simulator.io.b = b & ((1 << b_bits) - 1)
        simulator.clock.tick()
    mask = (1 << a_bits + b_bits) - 1
    assert products[latency:] == [a * b & mask for a, b in pairs]


def test_only_a_platform_with_such_a_device_gets_the_block():
    assert multiplier.instantiates(Target("ecp5"))
    assert not multiplier.instantiates(Target("xc7"))
    assert not multiplier.instantiates(None)
    assert "MULT18X18D" not in verilog.convert(Multiplier(8, 8), name="multiplier")
