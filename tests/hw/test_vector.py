"""The vector engine as a whole: hand-over, timing, and refusals."""

import numpy as np
import pytest

from twillcore.config import PRESETS
from twillcore.hw.vector import VectorEngine
from twillcore.isa import Cause, Instruction, Opcode
from twillcore.sim.benches.vector import EngineBench
from twillcore.sim.timing_vector import next_start, vector_end

TINY = PRESETS["tiny"]
BLOCK16 = TINY.replace(name="block16", block=16, dsp_columns=16)
NO_NORM = TINY.replace(name="no_norm", norm_depth=0)


def softmax(**operands):
    return Instruction(Opcode.SOFTMAX, {
        "a": 0, "a_row_stride": 4, "row_tiles": 1, "words": 1, "maximum": 0, "lane": 0,
        "numerator": 1 << 15, "shift": 30, "out": 0, "out_row_stride": 4,
    } | operands)  # fmt: skip


def layer_norm(**operands):
    return Instruction(Opcode.LAYER_NORM, {
        "a": 0, "a_row_stride": 4, "row_tiles": 1, "words": 1, "channels": 8, "epsilon": 1,
        "parameter": 0, "narrow": 1, "out": 0, "out_row_stride": 4, "wide": 1, "wide_out": 128,
        "wide_out_row_stride": 4,
    } | operands)  # fmt: skip


def elementwise(**operands):
    return Instruction(Opcode.ELEMENTWISE, {
        "op": 0, "a_wide": 1, "a": 0, "a_row_stride": 4, "b_wide": 1, "b": 4, "b_row_stride": 4,
        "row_tiles": 1, "words": 1, "a_multiplier": 1, "b_multiplier": 1, "shift": 0,
        "narrow_shift": 8, "wide": 0, "out": 0, "out_row_stride": 4,
    } | operands)  # fmt: skip


@pytest.mark.parametrize("config", [TINY, BLOCK16], ids=lambda c: c.name)
def test_timing_is_the_closed_formula(config):
    rng = np.random.default_rng(1)
    kinds = [softmax, layer_norm, elementwise] * 8
    jobs = [
        kinds[i](row_tiles=int(rng.integers(1, 5)), words=int(rng.integers(1, 14)))
        for i in rng.permutation(len(kinds))
    ]
    gaps = [int(gap) for gap in rng.choice([0, 0, 1, 2, 3, 5, 7, 12], len(jobs))]
    result = EngineBench(config, rng).run(VectorEngine(config), jobs, gaps)
    assert result.error is None
    assert result.ends == [
        vector_end(job, start, config) for job, start in zip(jobs, result.starts, strict=True)
    ]
    assert result.starts[1:] == [
        next_start(end) + gap for end, gap in zip(result.ends, gaps[1:], strict=False)
    ]
    assert len({start % 8 for start in result.starts}) > 4


@pytest.mark.parametrize(
    ("job", "config"),
    [
        (softmax(row_tiles=0), TINY),
        (softmax(words=0), TINY),
        (softmax(shift=22), TINY),
        (softmax(numerator=(1 << 15) - 1), TINY),
        (layer_norm(row_tiles=0), TINY),
        (layer_norm(words=0), TINY),
        (layer_norm(channels=0), TINY),
        (layer_norm(channels=9), TINY),
        (layer_norm(wide=0, narrow=0), TINY),
        (layer_norm(), NO_NORM),
        (elementwise(row_tiles=0), TINY),
        (elementwise(words=0), TINY),
        (Instruction(Opcode.HALT, {}), TINY),
    ],
)
def test_illegal_instruction(job, config):
    bench = EngineBench(config, np.random.default_rng(0))
    result = bench.run(VectorEngine(config), [elementwise(), job], [3, 2])
    assert result.error == (Cause.ILLEGAL_INSTRUCTION, 1)
    assert result.error_cycle == result.starts[1] + 2
    assert len(result.ends) == 1


@pytest.mark.parametrize(
    "job",
    [
        softmax(a=255, words=2),
        softmax(a=250, row_tiles=2, a_row_stride=6),
        softmax(a=250, row_tiles=2, a_row_stride=65535),
        softmax(maximum=32),
        softmax(maximum=31, row_tiles=2),
        softmax(lane=31, row_tiles=2),
        softmax(out=512),
        softmax(out=511, words=2),
        layer_norm(a=256),
        layer_norm(parameter=249),
        layer_norm(out=512),
        layer_norm(wide_out=256),
        layer_norm(wide_out=255, words=2),
        elementwise(a=65535),
        elementwise(a_wide=0, a=512),
        elementwise(b=256),
        elementwise(b_wide=0, b=511, words=2),
        elementwise(wide=1, out=256),
        elementwise(out=510, row_tiles=2, out_row_stride=2),
    ],
    ids=str,
)
def test_address_beyond_memory(job):
    # the bench itself fails on an access beyond a memory
    result = EngineBench(TINY, np.random.default_rng(0)).run(VectorEngine(TINY), [job])
    assert result.error == (Cause.ADDRESS_OUT_OF_RANGE, 0)


def test_last_addresses_are_legal():
    jobs = [
        softmax(a=255, maximum=31, lane=31, out=511),
        layer_norm(a=255, parameter=248, out=511, wide_out=255),
        elementwise(a=255, b=255, out=511),
    ]
    assert EngineBench(TINY, np.random.default_rng(0)).run(VectorEngine(TINY), jobs).error is None
