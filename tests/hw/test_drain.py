import numpy as np
import pytest

from twillcore import numerics
from twillcore.config import PRESETS
from twillcore.hw.drain import Drain
from twillcore.isa import Function, encode_parameter
from twillcore.sim.bench import simulate
from twillcore.timing import SHARED_READ_CYCLES, WideReadSlot

TINY = PRESETS["tiny"]
LANES, BLOCK = TINY.lanes, TINY.block


def log_uniform(rng, bits, shape):
    """Signed integers of every magnitude."""
    x = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), shape) >> rng.integers(0, bits, shape)
    return np.where(rng.random(shape) < 0.1, rng.choice([-(1 << (bits - 1)), -1, 0, 1], shape), x)


def pack(values, bits):
    """Join values to an integer, the first in the low bits."""
    return sum((int(v) & (1 << bits) - 1) << (i * bits) for i, v in enumerate(values))


class Tile:
    """One tile with everything it reads, and what it writes."""

    def __init__(self, rng, config, number, table):
        columns = config.dsp_columns
        # Ties are common when shifts are small and values end in zeros.
        self.sums = log_uniform(rng, config.accumulator_bits, (LANES, columns))
        self.sums = np.where(rng.random(self.sums.shape) < 0.3, self.sums & ~0xFF, self.sums)
        self.bias = np.where(rng.random(columns) < 0.3, 0, log_uniform(rng, 32, columns))
        self.multiplier = np.where(
            rng.random(columns) < 0.5, 1 << rng.integers(0, 15, columns),
            log_uniform(rng, 16, columns),
        )  # fmt: skip
        self.shift = np.where(
            rng.random(columns) < 0.7, rng.integers(0, 35, columns), rng.integers(0, 64, columns)
        )
        self.narrow_shift = rng.integers(0, 16, columns)
        self.lane_multiplier = rng.integers(0, 1 << 17, LANES) >> rng.integers(0, 17, LANES)
        self.lane_shift = rng.integers(0, 45, LANES)
        self.residual = log_uniform(rng, 16, (LANES, columns))
        lane_scaled, residual, wide = (int(x) for x in rng.integers(0, 2, 3))
        shift = int(rng.integers(-8, 16))
        function = Function(int(rng.integers(0, 3)))
        self.fields = {
            "parameter": 1000 + 100 * number, "lane_scaled": lane_scaled, "lane": number % 1000,
            "residual": residual, "residual_address": 2000 + 100 * number, "residual_narrow": 0,
            "residual_shift": shift + 8, "function": function, "wide": wide,
            "out": 3000 + 100 * number, "keep_maximum": 1, "first_column": 1, "last_column": 1,
            "maximum": number % 1000, "last_drained": columns - 1, "last": number % 2,
        }  # fmt: skip
        scale = (self.multiplier, self.shift)
        if lane_scaled:
            scale = (self.lane_multiplier[:, None], self.lane_shift[:, None])
        value = numerics.scale_accumulator(self.sums, self.bias, *scale)
        if residual:
            value = numerics.add_residual(value, self.residual, shift)
        if function is Function.RELU:
            value = numerics.relu(value)
        elif function is Function.TABLE:
            value = numerics.look_up(value, table)
        out = value if wide else numerics.narrow(value, self.narrow_shift)
        words = out.reshape(LANES, columns // BLOCK, BLOCK).swapaxes(0, 1)
        self.words = [pack(word.flat, 16 if wide else 8) for word in words]
        self.maximum = pack(value.max(axis=1), 16)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        TINY.replace(dsp_columns=16, accumulator_bits=40),
        TINY.replace(accumulator_bits=20),
        TINY.replace(family="xc7"),  # residuals are shifted by multipliers
    ],
    ids=["one word", "two words", "narrow accumulators", "xc7"],
)
def test_values_and_times(config):
    rng = np.random.default_rng(0)
    columns = config.dsp_columns
    table = log_uniform(rng, 16, 256)
    tiles = [Tile(rng, config, number, table) for number in range(100)]
    dut = Drain(config)
    writes, starts = {}, []  # writes[port, cycle] = (address, data)

    async def bench(ctx):
        for row in range(64):
            ctx.set(dut.table.address, row)
            ctx.set(dut.table.enable, 1)
            ctx.set(dut.table.data, table[4 * row : 4 * row + 4].tolist())
            await ctx.tick()
        ctx.set(dut.table.enable, 0)

        number, occupied, ended = 0, False, None
        shadow_from = {}  # cycle from which on the shadow is a tile's
        shadow, column = None, 0
        done = 0
        reads, late = {}, {}
        last_start = -1000
        cycle = 0
        while done < len(tiles) // 2:
            ctx.set(dut.phase, cycle % 8)
            rubbish = (1 << 64) // 5
            for port in (dut.parameter, dut.wide_read, dut.lane_scale):
                size = len(port.data.as_value())
                data = reads.get(id(port), int(rng.integers(1 << 62)) * rubbish)
                ctx.set(port.data.as_value(), data & (1 << size) - 1)
            reads.clear()
            if cycle + 1 in late:
                reads[id(dut.wide_read)] = late.pop(cycle + 1)
            if cycle in shadow_from:
                shadow, column = shadow_from.pop(cycle), 0
            if shadow is not None:
                sums = shadow.sums[:, column] if column < columns else [0] * LANES
                ctx.set(dut.column, [int(x) for x in sums])
            end = (
                number < len(tiles) and not occupied and rng.random() < (0.7, 0.1)[number % 20 < 5]
            )
            ctx.set(dut.tile.valid, ended is not None)
            if ended is not None:
                ctx.set(dut.tile.payload, ended.fields)
            ended = None
            if end:
                ended = tiles[number]  # the drain is told in the cycle after the step
                shadow_from[cycle + Drain.BEAT_TO_START + 2] = tiles[number]
                start = max(cycle + Drain.BEAT_TO_START, last_start + columns)
                last_start = start + (Drain.START_PHASE - start) % 8
                starts.append(last_start)
                number, occupied = number + 1, True
            if ctx.get(dut.parameter.enable):
                tile, c = divmod(ctx.get(dut.parameter.address) - 1000, 100)
                t = tiles[tile]
                reads[id(dut.parameter)] = encode_parameter(
                    t.bias[c], t.multiplier[c], t.shift[c], t.narrow_shift[c]
                )
            if ctx.get(dut.wide_read.enable):
                assert cycle % 8 == WideReadSlot.DRAIN_READ
                tile, word = divmod(ctx.get(dut.wide_read.address) - 2000, 100)
                values = tiles[tile].residual[:, word * BLOCK : (word + 1) * BLOCK]
                late[cycle + SHARED_READ_CYCLES] = pack(values.flat, 16)
            if ctx.get(dut.lane_scale.enable):
                t = tiles[ctx.get(dut.lane_scale.address)]
                reads[id(dut.lane_scale)] = pack(t.lane_multiplier | t.lane_shift << 17, 23)
            for port in (dut.activation_write, dut.wide_write, dut.row_maximum):
                if ctx.get(port.enable):
                    data = ctx.get(port.data.as_value())
                    writes[port, cycle] = (ctx.get(port.address), data)
            if ctx.get(dut.done):
                done += 1
            column += ctx.get(dut.shift)
            if ctx.get(dut.release):
                occupied = False
            await ctx.tick()
            cycle += 1

    simulate(dut, bench)
    expected = {}
    for tile, start in zip(tiles, starts, strict=True):
        port = dut.wide_write if tile.fields["wide"] else dut.activation_write
        for j, word in enumerate(tile.words):
            cycle = start + Drain.LATENCY + (j + 1) * BLOCK
            expected[port, cycle] = (tile.fields["out"] + j, word)
        expected[dut.row_maximum, cycle] = (tile.fields["maximum"], tile.maximum)
    assert len(writes) == len(expected)
    assert {key: hex(value[1]) for key, value in writes.items() if value != expected.get(key)} == {}
