import numpy as np
import pytest

from twillcore.config import PRESETS
from twillcore.hw.dsp_array import DspArray
from twillcore.sim.bench import simulate

TINY = PRESETS["tiny"]
EXTREMES = np.array([-128, -127, -1, 0, 1, 127])


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        TINY.replace(family="xcup"),
        TINY.replace(family="xc7", lanes=3, block=16, dsp_columns=16, operand_depth=0,
                     axi_data_bits=128),
    ],
    ids=["one lane per multiplier", "two lanes", "two lanes and one, 16 positions"],
)  # fmt: skip
def test_sums(config):
    """Every column of every tile, at the promised cycle, with gaps between beats."""
    rng = np.random.default_rng(0)
    dut = DspArray(config)
    lanes, block, columns = config.lanes, config.block, config.dsp_columns
    shadows = {}  # by the cycle from which on they stand: what each lane and column must hold

    def int8(*shape):
        return np.where(rng.random(shape) < 0.5, rng.choice(EXTREMES, shape),
                        rng.integers(-128, 128, shape))  # fmt: skip

    async def bench(ctx):
        held, sums, column = None, np.zeros((lanes, columns), int), columns
        expected = None
        data = None
        clear = True
        for cycle in range(500):
            if cycle in shadows:
                expected, column = shadows.pop(cycle), 0
            if column < columns:  # the shadow's columns leave one by one
                seen = [ctx.get(dut.column[lane]) for lane in range(lanes)]
                assert seen == expected[:, column].tolist(), (cycle, column)
                column += 1
            ctx.set(dut.shift, column < columns)

            # Data of the beat before stand on the ports; rubbish where nothing was read.
            activation, weight, operand, index = data or (
                int8(lanes, block), int8(columns), int8(columns), np.zeros(columns, int),
            )  # fmt: skip
            ctx.set(dut.activation, activation.tolist())
            ctx.set(dut.weight, {"weight": weight.tolist(), "index": index.tolist()})
            ctx.set(dut.operand, operand.tolist())
            data = None

            beat = {"valid": int(rng.random() < 0.8)}
            if beat["valid"]:
                load = held is None or rng.random() < 0.4
                finish = not shadows and column >= columns and rng.random() < 0.2
                beat |= {
                    "load": int(load), "clear": int(clear), "finish": int(finish),
                    "operand": int(rng.integers(2)), "counted": int(rng.integers(2)),
                    "position": int(rng.integers(block)),
                }  # fmt: skip
                data = (
                    int8(lanes, block), int8(columns), int8(columns),
                    rng.integers(0, block, columns),
                )  # fmt: skip
                if load:
                    held = data[0]
                position = np.full(columns, beat["position"]) if beat["counted"] else data[3]
                row = data[2] if beat["operand"] else data[1]
                sums = (0 if clear else sums) + held[:, position] * row
                clear = finish
                if finish:
                    shadows[cycle + DspArray.BEAT_TO_SHADOW] = sums
            ctx.set(dut.beat, beat)
            await ctx.tick()

    simulate(dut, bench)
