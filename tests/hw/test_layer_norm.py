import numpy as np
import pytest

from twillcore.config import PRESETS
from twillcore.hw.vector import VectorEngine
from twillcore.isa import Instruction, Opcode, encode_parameter
from twillcore.numerics import layer_norm, narrow
from twillcore.sim.benches.vector import EngineBench

TINY = PRESETS["tiny"]
WIDE = TINY.replace(name="wide8", lanes=8)
BLOCK16 = TINY.replace(name="block16", block=16, dsp_columns=16)


def rows(rng, kind, shape):
    """Return int16 channels of shape (row tiles, words * block, lanes)."""
    if kind == "random":
        return rng.integers(-3000, 3000, shape)
    if kind == "full":
        return rng.choice([-32768, 32767], shape)
    if kind == "constant":  # variance zero
        return np.full(shape, 0) + rng.integers(-32768, 32768, (shape[0], 1, shape[2]))
    if kind == "zero":
        return np.zeros(shape, np.int64)
    # "log": rows of every magnitude
    magnitude = 2.0 ** rng.uniform(0, 15, (shape[0], 1, shape[2]))
    return np.clip(np.rint(rng.normal(size=shape) * magnitude), -32768, 32767).astype(np.int64)


def parameters(rng, count):
    """Return gamma, beta, shift, narrow_shift, and their entries, of ``count`` channels."""
    gamma = rng.integers(-32768, 32768, count)
    beta = rng.integers(-(1 << 31), 1 << 31, count) >> rng.integers(0, 20, count)
    shift = rng.integers(10, 30, count)
    shift[:4] = 0, 63, 1, 15
    narrow_shift = rng.integers(0, 16, count)
    entries = [
        encode_parameter(int(b), int(g), int(s), int(n))
        for b, g, s, n in zip(beta, gamma, shift, narrow_shift, strict=True)
    ]
    return gamma, beta, shift, narrow_shift, entries


CASES = [  # kind, row tiles, words, padding channels, wide, narrow, in place, epsilon
    ("random", 3, 3, 2, 1, 1, True, 1000),
    ("full", 2, 12, 0, 1, 0, False, 0),
    ("constant", 2, 2, 0, 1, 1, False, 0),
    ("constant", 1, 1, 0, 1, 1, False, (1 << 32) - 1),
    ("zero", 1, 1, 7, 1, 1, False, 0),
    ("log", 4, 4, 1, 0, 1, False, 1),
    ("log", 4, 13, 0, 1, 1, True, 3),
]


@pytest.mark.parametrize("config", [TINY, WIDE, BLOCK16], ids=lambda c: c.name)
def test_matches_numerics(config):
    rng = np.random.default_rng(0)
    bench = EngineBench(config, rng)
    jobs, expected = [], []
    place = 0
    for kind, row_tiles, words, padding, wide, narrowed, in_place, epsilon in CASES:
        span = words * config.block
        channels = span - padding
        stride = words + 1
        parameter = int(rng.integers(0, config.norm_depth - span + 1))
        if not jobs:
            parameter = 0
            gamma, beta, shift, narrow_shift, entries = parameters(rng, config.norm_depth)
            bench.norm[:] = entries
        x = rows(rng, kind, (row_tiles, span, config.lanes))
        x[:, channels:] = 0
        for tile in range(row_tiles):
            words_of_tile = x[tile].reshape(words, config.block, config.lanes)
            bench.wide[place + tile * stride :][:words] = words_of_tile.transpose(0, 2, 1)
        job = Instruction(Opcode.LAYER_NORM, {
            "a": place, "a_row_stride": stride, "row_tiles": row_tiles, "words": words,
            "channels": channels, "epsilon": epsilon, "parameter": parameter, "narrow": narrowed,
            "out": place, "out_row_stride": stride, "wide": wide,
            "wide_out": place if in_place else 128 + place, "wide_out_row_stride": stride,
        })  # fmt: skip
        own = slice(parameter, parameter + span)
        y = layer_norm(
            x.transpose(0, 2, 1), channels, epsilon, gamma[own], beta[own], shift[own]
        )  # row tile, lane, channel
        jobs.append(job)
        expected.append((y, narrow(y, narrow_shift[own])))
        place += row_tiles * stride
    assert place <= 128
    result = bench.run(VectorEngine(config), jobs, [0, 3, 6, 1, 4])
    assert result.error is None
    for job, wide_narrow in zip(jobs, expected, strict=True):
        for memory, out, on, values in (
            (bench.wide, "wide_out", "wide", wide_narrow[0]),
            (bench.activation, "out", "narrow", wide_narrow[1]),
        ):
            for tile in range(job["row_tiles"]):
                start = job[out] + tile * job[f"{out}_row_stride"]
                got = memory[start : start + job["words"]].transpose(1, 0, 2)
                got = got.reshape(config.lanes, -1)
                if job[on]:
                    np.testing.assert_array_equal(got, values[tile])
                elif memory is bench.activation:
                    assert not got.any()


def test_most_channels_there_can_be():
    # the widest sums: every lane another sign pattern of full scale
    config = TINY.replace(wide_depth=512, norm_depth=4096)
    rng = np.random.default_rng(0)
    bench = EngineBench(config, rng)
    channels = 4095
    x = np.zeros((config.lanes, 4096), np.int64)
    x[0, :channels] = -32768
    x[1, :channels] = 32767
    x[2, :channels] = rng.choice([-32768, 32767], channels)
    x[3, :channels] = np.where(np.arange(channels) == 77, -32768, 32767)
    bench.wide[:] = x.reshape(config.lanes, 512, 8).transpose(1, 0, 2)
    gamma, beta, shift, narrow_shift, bench.norm = parameters(rng, 4096)
    job = Instruction(Opcode.LAYER_NORM, {
        "a": 0, "a_row_stride": 0, "row_tiles": 1, "words": 512, "channels": channels,
        "epsilon": 7, "parameter": 0, "narrow": 1, "out": 0, "out_row_stride": 0, "wide": 1,
        "wide_out": 0, "wide_out_row_stride": 0,
    })  # fmt: skip
    assert bench.run(VectorEngine(config), [job]).error is None
    y = layer_norm(x, channels, 7, gamma, beta, shift)
    for memory, values in ((bench.wide, y), (bench.activation, narrow(y, narrow_shift))):
        got = memory.transpose(1, 0, 2).reshape(config.lanes, -1)
        np.testing.assert_array_equal(got, values)
