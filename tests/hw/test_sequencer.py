import random

import pytest
from amaranth.hdl import Const

from twillcore.config import PRESETS
from twillcore.hw.sequencer import Sequencer
from twillcore.isa import ISA, Cause, Instruction, Opcode
from twillcore.sim.bench import simulate

TINY = PRESETS["tiny"]
COLUMNS = TINY.dsp_columns


def gemm(**operands):
    """A GEMM of one tile and one beat, changed by ``operands``."""
    values = {field.name: 0 for field in ISA[Opcode.GEMM].operands}
    values |= {"row_tiles": 1, "column_tiles": 1, "blocks": 1, "beats": 1}
    return Instruction(Opcode.GEMM, values | operands)


def expected_beats(g):
    """Return (activation address if one is read, row, clear, finish, position) of every beat."""
    rows, columns = range(g["row_tiles"]), range(g["column_tiles"])
    if g["columns_inner"]:
        order = [(rt, ct) for rt in rows for ct in columns]
    else:
        order = [(rt, ct) for ct in columns for rt in rows]
    beats = []
    for rt, ct in order:
        base = g["a"] + rt * g["a_row_stride"] + ct * g["a_column_stride"]
        row = g["w"] + ct * g["blocks"] * g["beats"]
        of_tile = [(block, beat) for block in range(g["blocks"]) for beat in range(g["beats"])]
        for n, (block, beat) in enumerate(of_tile):
            finish = n == len(of_tile) - 1 and not g["hold"]
            clear = n == 0 and not g["accumulate"]
            beats.append((None if beat else base + block, row + n, clear, finish, beat))
    return beats


def run(words, release_after=1, cycles=300):
    """Run instruction words; return what was seen per cycle with a beat, tiles, and errors.

    The shadow is released ``release_after`` cycles after the last beat of a tile.
    """
    dut = Sequencer(TINY)
    beats, tiles, errors, accepted = [], [], [], []

    async def bench(ctx):
        ctx.set(dut.admit, 1)
        ctx.set(dut.grant, 1)
        pending = list(enumerate(words))
        release_in, finished = 0, Const(0)
        for cycle in range(cycles):
            ctx.set(dut.instruction.valid, bool(pending))
            if pending:
                index, word = pending[0]
                ctx.set(dut.instruction.payload, {"word": word, "index": index})
            ctx.set(dut.release, release_in == 1)
            release_in = max(release_in - 1, 0)
            if pending and ctx.get(dut.instruction.ready):
                accepted.append(cycle)
                pending.pop(0)
            beat = ctx.get(dut.beat)
            if beat.valid:
                port = dut.operand if beat.operand else dut.weight
                activation = ctx.get(dut.activation.address)
                beats.append((cycle, (
                    activation if ctx.get(dut.reads) else None,
                    ctx.get(port.address) if ctx.get(port.enable) else None,
                    beat.clear, beat.finish, beat.position,
                )))  # fmt: skip
            beyond = dut.error.valid & (dut.error.cause == Cause.ADDRESS_OUT_OF_RANGE)
            assert ctx.get(dut.tile.valid) == ctx.get(finished & ~beyond)
            if ctx.get(dut.tile.valid):
                tiles.append(ctx.get(dut.tile.payload))
            finished = Const(beat.finish)
            if beat.finish:
                assert release_in == 0, "a tile ends while the shadow is occupied"
                release_in = release_after
            if ctx.get(dut.error.valid):
                errors.append((ctx.get(dut.error.cause), ctx.get(dut.error.index)))
            await ctx.tick()

    simulate(dut, bench)
    return beats, tiles, errors, accepted


@pytest.mark.parametrize("columns_inner", [0, 1])
@pytest.mark.parametrize("operand", [0, 1])
def test_addresses_and_no_bubble(columns_inner, operand):
    rng = random.Random(columns_inner)
    instructions = [
        gemm(
            a=rng.randrange(100), a_row_stride=rng.randrange(50), a_column_stride=rng.randrange(50),
            row_tiles=rng.randint(1, 3), column_tiles=rng.randint(1, 3), blocks=rng.randint(1, 3),
            beats=rng.randint(2, 5), w=rng.randrange(100), operand=operand,
            columns_inner=columns_inner,
        )
        for _ in range(8)
    ]  # fmt: skip
    instructions += [gemm(hold=1), gemm(hold=1, accumulate=1, beats=8), gemm(accumulate=1)]
    beats, _, errors, accepted = run([g.encode() for g in instructions], cycles=900)
    expected = [beat for g in instructions for beat in expected_beats(g)]
    assert not errors
    assert [beat for _, beat in beats] == expected
    assert [cycle for cycle, _ in beats] == list(range(1, len(expected) + 1))
    lengths = [len(expected_beats(g)) for g in instructions]
    assert accepted == [sum(lengths[:n]) for n in range(len(lengths))]


def test_last_beat_waits_for_the_shadow():
    beats, *_ = run([gemm(row_tiles=3, blocks=4).encode()], release_after=10)
    assert [cycle for cycle, _ in beats] == [1, 2, 3, 4, 5, 6, 7, 15, 16, 17, 18, 26]


def test_held_instruction_does_not_wait():
    words = [gemm(), gemm(hold=1), gemm(hold=1, accumulate=1), gemm(accumulate=1)]
    beats, *_ = run([g.encode() for g in words], release_after=10)
    assert [cycle for cycle, _ in beats] == [1, 2, 3, 12]


@pytest.mark.parametrize("columns_inner", [0, 1])
def test_tiles(columns_inner):
    g = gemm(
        row_tiles=2, column_tiles=3, columns_inner=columns_inner, keep_maximum=columns_inner,
        parameter=40, lane_scaled=1, lane=3, maximum=5, out=7, out_row_stride=20, residual=1,
        residual_address=9, residual_row_stride=30, residual_shift=-8, wide=1, function=2,
    )  # fmt: skip
    _, tiles, _, _ = run([g.encode()])
    order = [(rt, ct) for rt in range(2) for ct in range(3)]
    if not columns_inner:
        order.sort(key=lambda place: place[::-1])
    assert len(tiles) == len(order)
    for tile, (rt, ct) in zip(tiles, order, strict=True):
        assert tile.parameter == 40 + ct * COLUMNS
        assert (tile.lane, tile.maximum) == (3 + rt, 5 + rt)
        assert tile.out == 7 + rt * 20 + ct * TINY.words_per_tile
        assert tile.residual_address == 9 + rt * 30 + ct * TINY.words_per_tile
        assert (tile.residual_shift, tile.function, tile.wide) == (0, 2, 1)
        assert tile.last == ((rt, ct) == order[-1])
        if columns_inner:
            assert (tile.first_column, tile.last_column) == (ct == 0, ct == 2)


GOOD = gemm(beats=3).encode()
BEYOND = {
    "a": {"a": TINY.activation_depth - 1, "blocks": 2},
    "a_row_stride": {"a": 1, "a_row_stride": 0xFFFF, "row_tiles": 2},
    "w": {"w": TINY.weight_depth - 1, "beats": 2},
    "operand": {"operand": 1, "w": TINY.operand_depth},
    "parameter": {"parameter": TINY.parameter_depth - COLUMNS + 1},
    "parameter-second-tile": {
        "parameter": TINY.parameter_depth - 2 * COLUMNS + 1, "column_tiles": 2,
    },
    "lane": {"lane_scaled": 1, "lane": TINY.lane_depth - 1, "row_tiles": 2},
    "maximum": {"keep_maximum": 1, "columns_inner": 1, "maximum": TINY.lane_depth},
    "residual": {"residual": 1, "residual_address": TINY.wide_depth},
    "residual_row_stride": {
        "residual": 1, "residual_address": 1, "residual_row_stride": 0xFFFF, "row_tiles": 2,
    },
    "out": {"out": TINY.activation_depth},
    "out-wide": {"out": TINY.wide_depth, "wide": 1},
    "out_row_stride": {"out": 1, "out_row_stride": 0xFFFF, "row_tiles": 2},
}  # fmt: skip
ILLEGAL = {
    "row_tiles": {"row_tiles": 0},
    "column_tiles": {"column_tiles": 0},
    "blocks": {"blocks": 0},
    "no-beats": {"beats": 0},
    "many-beats": {"beats": TINY.block + 1},
    "maximum": {"keep_maximum": 1},
    "function": {"function": 3},
    "residual_shift": {"residual": 1, "residual_shift": -9},
    "hold": {"hold": 1, "row_tiles": 2},
    "accumulate": {"accumulate": 1, "column_tiles": 2},
}
CASES = [(name, g, Cause.ADDRESS_OUT_OF_RANGE) for name, g in BEYOND.items()] + [
    (f"illegal-{name}", g, Cause.ILLEGAL_INSTRUCTION) for name, g in ILLEGAL.items()
]


@pytest.mark.parametrize(("name", "operands", "cause"), CASES, ids=[name for name, *_ in CASES])
def test_error(name, operands, cause):
    beats, tiles, errors, accepted = run([GOOD, gemm(**operands).encode(), GOOD], cycles=40)
    assert errors == [(cause, 1)]
    beyond = [
        cycle
        for cycle, (activation, row, *_) in beats
        if (activation or 0) >= TINY.activation_depth
        or row >= max(TINY.weight_depth, TINY.operand_depth)
    ]
    assert beyond in ([], [beats[-1][0]]), "beats go on after a read beyond a memory"
    for tile in tiles:
        assert tile.out < (TINY.wide_depth if tile.wide else TINY.activation_depth)
        assert tile.parameter <= TINY.parameter_depth - COLUMNS
    if cause is Cause.ILLEGAL_INSTRUCTION:
        assert len(beats) == 3, "no beat of an illegal instruction"
        assert len(accepted) == 2


@pytest.mark.parametrize(
    "operands",
    [
        {"a": TINY.activation_depth - 2, "blocks": 2},
        {"w": TINY.weight_depth - 2, "beats": 2},
        {"operand": 1, "w": TINY.operand_depth - 1},
        {"parameter": TINY.parameter_depth - COLUMNS},
        {"lane_scaled": 1, "lane": TINY.lane_depth - 1},
        {"residual": 1, "residual_address": TINY.wide_depth - 1},
        {"wide": 1, "out": TINY.wide_depth - 1},
        {"out": TINY.activation_depth - 1},
        {"hold": 1, "out": 0xFFFF, "parameter": 0xFFFF},  # not used
    ],
)
def test_last_place_of_every_memory_is_legal(operands):
    _, _, errors, _ = run([gemm(**operands).encode()], cycles=40)
    assert not errors


def test_other_opcode():
    _, _, errors, _ = run([GOOD & ~0xF | Opcode.MOVE], cycles=5)
    assert errors == [(Cause.ILLEGAL_INSTRUCTION, 0)]
