import numpy as np
import pytest
from amaranth.hdl import Module, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from twillcore.hw.delay import valid_chain
from twillcore.hw.round_shift import round_shift, round_shift_latency
from twillcore.numerics import round_shift as rounded
from twillcore.numerics import saturate
from twillcore.sim.bench import simulate

LANES = 2


class Wrapper(wiring.Component):
    def __init__(self, input_bits, output_bits, shift_bits, shared):
        self.output_bits = output_bits
        self.latency = round_shift_latency(shift_bits)
        super().__init__({
            "valid": In(1),
            "x": In(data.ArrayLayout(signed(input_bits), LANES)),
            "shift": In(data.ArrayLayout(shift_bits, 1 if shared else LANES)),
            "y": Out(data.ArrayLayout(signed(output_bits), LANES)),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        enables = valid_chain(m, self.valid, self.latency, "valid")
        results = round_shift(
            m, enables, list(self.x), list(self.shift), output_bits=self.output_bits, name="y"
        )
        m.d.comb += [y.eq(result) for y, result in zip(self.y, results, strict=True)]
        return m


@pytest.mark.parametrize(
    ("input_bits", "output_bits", "shift_bits", "shared"),
    [(16, 8, 4, True), (47, 16, 6, True), (46, 22, 5, False)],
)
def test_matches_numerics(input_bits, output_bits, shift_bits, shared):
    rng = np.random.default_rng(0)
    dut = Wrapper(input_bits, output_bits, shift_bits, shared)
    count = 600
    shifts = rng.integers(0, 1 << shift_bits, (count, 1 if shared else LANES))
    low = -(1 << input_bits - 1)
    x = rng.integers(low, -low, (count, LANES)) >> rng.integers(0, input_bits, (count, LANES))
    # ties, and what is next to them, of both signs
    near = (rng.integers(-9, 9, (count, LANES)) << np.minimum(shifts, input_bits - 6)) + (
        1 << np.maximum(np.minimum(shifts, input_bits - 6) - 1, 0)
    )
    near += rng.integers(-1, 2, (count, LANES))
    x = np.clip(np.where(rng.random((count, 1)) < 0.6, near, x), low, -low - 1)
    x[:4] = [[low, -low - 1], [0, -1], [1, low], [-low - 1, low]]
    shifts[0] = 1
    expected = saturate(rounded(x, shifts), output_bits)

    async def bench(ctx):
        ctx.set(dut.valid, 1)
        for cycle in range(count + dut.latency):
            if cycle < count:
                ctx.set(dut.x, x[cycle].tolist())
                ctx.set(dut.shift, shifts[cycle].tolist())
            if cycle >= dut.latency:
                got = [ctx.get(y) for y in dut.y]
                assert got == expected[cycle - dut.latency].tolist(), x[cycle - dut.latency]
            await ctx.tick()

    simulate(dut, bench)
