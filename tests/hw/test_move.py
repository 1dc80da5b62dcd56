# amaranth: UnusedElaboratable=no
import numpy as np
import pytest

from twillcore.config import PRESETS
from twillcore.hw.move import MoveEngine
from twillcore.isa import Cause, Instruction, MoveMode, Opcode
from twillcore.sim.benches.vector import EngineBench
from twillcore.sim.timing_vector import move_end, next_start

TINY = PRESETS["tiny"]
CONFIGS = [
    TINY,
    TINY.replace(name="one_group", lanes=8),
    TINY.replace(name="three_words", lanes=4, dsp_columns=24),
    TINY.replace(name="block16", block=16, dsp_columns=32, lanes=16),
    TINY.replace(name="rows_bound", block=16, dsp_columns=16, lanes=16),
]


def move(mode, **operands):
    return Instruction(Opcode.MOVE, {
        "mode": mode, "a": 0, "a_row_stride": 4, "row_tiles": 1, "blocks": 1, "out": 0,
        "column_stride": 64,
    } | operands)  # fmt: skip


def expected_rows(config, job, activation, operand):
    """Write what ``job`` moves into ``operand``, as ISA's sentences say it."""
    q = config.dsp_columns // config.lanes
    words = [
        activation[job["a"] + t * job["a_row_stride"] :][: job["blocks"]]
        for t in range(job["row_tiles"])
    ]
    values = np.array(words).transpose(0, 2, 1, 3).reshape(len(words), config.lanes, -1)
    if job["mode"] == MoveMode.KEYS:
        for t, tile in enumerate(values):
            for c in range(values.shape[2]):
                row = job["out"] + t // q * job["column_stride"] + c
                operand[row, t % q * config.lanes :][: config.lanes] = tile[:, c]
        return
    for j in range(job["blocks"] // config.words_per_tile):
        columns = slice(j * config.dsp_columns, (j + 1) * config.dsp_columns)
        first = job["out"] + j * job["column_stride"]
        operand[first : first + len(words) * config.lanes] = values[..., columns].reshape(
            -1, config.dsp_columns
        )


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_moves_and_timing(config):
    rng = np.random.default_rng(0)
    bench = EngineBench(config, rng)
    bench.activation[:] = rng.integers(-128, 128, bench.activation.shape)
    bench.operand[:] = rng.integers(-128, 128, bench.operand.shape)
    expected = bench.operand.copy()
    jobs = []
    for n in range(12):
        row_tiles = int(rng.integers(1, 6))
        if n % 2:
            blocks = int(rng.integers(1, 4))
            job = move(MoveMode.KEYS, blocks=blocks, column_stride=int(rng.integers(0, 40)))
        else:
            blocks = int(rng.integers(1, 3)) * config.words_per_tile
            job = move(MoveMode.VALUES, blocks=blocks, column_stride=int(rng.integers(0, 90)))
        places = {"a": int(rng.integers(0, 300)), "a_row_stride": int(rng.integers(0, 20)),
                  "out": int(rng.integers(0, 20)), "row_tiles": row_tiles}  # fmt: skip
        jobs.append(Instruction(Opcode.MOVE, {**job.operands, **places}))
        expected_rows(config, jobs[-1], bench.activation, expected)
    gaps = [int(gap) for gap in rng.integers(0, 9, len(jobs))]
    gaps[3] = gaps[4] = 0
    result = bench.run(MoveEngine(config), jobs, gaps)
    assert result.error is None
    np.testing.assert_array_equal(bench.operand, expected)
    assert result.ends == [
        move_end(job, start, config) for job, start in zip(jobs, result.starts, strict=True)
    ]
    assert result.starts[1:] == [
        next_start(end) + gap for end, gap in zip(result.ends, gaps[1:], strict=False)
    ]


@pytest.mark.parametrize(
    ("job", "config"),
    [
        (move(0, row_tiles=0), TINY),
        (move(1, blocks=0), TINY),
        (move(1, blocks=4), CONFIGS[2]),
        (move(1, blocks=3), CONFIGS[3]),
        (Instruction(Opcode.HALT, {}), TINY),
    ],
)
def test_illegal_instruction(job, config):
    bench = EngineBench(config, np.random.default_rng(0))
    result = bench.run(MoveEngine(config), [move(0), job])
    assert result.error == (Cause.ILLEGAL_INSTRUCTION, 1)
    assert result.error_cycle == result.starts[1] + 2


@pytest.mark.parametrize(
    "job",
    [
        move(0, a=512),
        move(0, a=511, blocks=2),
        move(1, a=510, row_tiles=2, a_row_stride=2),
        move(0, out=249),
        move(0, out=0, row_tiles=3, column_stride=250),
        move(1, out=253),
        move(1, blocks=2, column_stride=65535),
    ],
    ids=str,
)
def test_address_beyond_memory(job):
    result = EngineBench(TINY, np.random.default_rng(0)).run(MoveEngine(TINY), [job])
    assert result.error == (Cause.ADDRESS_OUT_OF_RANGE, 0)


def test_last_addresses_are_legal():
    jobs = [move(0, a=511, out=248), move(1, a=511, out=252)]
    assert EngineBench(TINY, np.random.default_rng(0)).run(MoveEngine(TINY), jobs).error is None


def test_needs_operand_memory():
    message = "^MoveEngine needs operand memory, configuration 'none' has operand_depth 0$"
    with pytest.raises(ValueError, match=message):
        MoveEngine(TINY.replace(name="none", operand_depth=0))
