"""Sequencer, window and gather path of a core: the words of the array, against maps in numpy."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import Out, connect, flipped

from twillcore.config import PRESETS
from twillcore.hw.gather import Gather
from twillcore.hw.ports import gather_port
from twillcore.hw.sequencer import Sequencer
from twillcore.hw.window import Window
from twillcore.isa import ISA, TAP, Cause, Instruction, Opcode
from twillcore.sim.bench import simulate
from twillcore.timing import window_cycles

BLOCK = 8
DEPTH = 2048


class Core(wiring.Component):
    """A sequencer whose ``activation`` is that of the memory."""

    def __init__(self, config, refusable):
        self._config = config
        self._sequencer = Sequencer(config, refusable=refusable)
        members = dict(self._sequencer.signature.members)
        super().__init__(members | {"activation": Out(gather_port(config))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.sequencer = sequencer = self._sequencer
        m.submodules.gather = gather = Gather(self._config)
        connect(m, sequencer.activation, gather.dsp)
        connect(m, gather.memory, flipped(self.activation))
        for name, member in sequencer.signature.members.items():
            if name == "activation":
                continue
            mine, theirs = getattr(self, name), getattr(sequencer, name)
            if member.is_signature:
                pair = (flipped(mine), theirs) if member.flow is Out else (theirs, flipped(mine))
                connect(m, *pair)
            else:
                m.d.comb += mine.eq(theirs) if member.flow is Out else theirs.eq(mine)
        return m


def config_of(lanes):
    return PRESETS["tiny"].replace(
        lanes=lanes, dsp_columns=lanes * 8 if lanes < 8 else 56, tap_depth=64, operand_depth=0,
        activation_depth=DEPTH, weight_depth=1024, axi_data_bits=64 if lanes % 4 == 0 else 32,
    )  # fmt: skip


def instruction(opcode, **operands):
    values = {field.name: 0 for field in ISA[opcode].operands}
    return Instruction(opcode, values | operands)


def gemm(**operands):
    small = {"row_tiles": 1, "column_tiles": 1, "blocks": 1, "beats": 1, "windowed": 1}
    return instruction(Opcode.GEMM, **small | operands)


def encode_tap(**fields):
    word, offset = 0, 0
    for field in TAP:
        value = fields.get(field.name, 0)
        assert field.low <= value <= field.high
        word |= (value & (1 << field.bits) - 1) << offset
        offset += field.bits
    return word


@dataclass
class Case:
    """A layer's geometry. Lines are padded to ``pitch`` pixels with rubbish."""

    lanes: int
    width: int
    height: int
    kernel: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    stride: int
    blocks: int
    pitch: int
    out_pitch: int
    first_line: int  # of the band, in output lines
    row_tiles: int
    beats: int = 1
    pool: int = 0
    column_tiles: int = 1
    columns_inner: int = 0
    a: int = 1000
    origin: int = 1000  # first word of the map; parts of it may be beyond the memory

    @classmethod
    def random(cls, rng, lanes, **fixed):
        """Draw a layer; pitches fit what the stride asks for."""
        width, height = int(rng.integers(1, 41)), int(rng.integers(1, 12))
        kernel = tuple(int(k) for k in rng.integers(1, 8 if width > 3 else 4, 2))
        padding = tuple(int(rng.integers(0, k)) for k in kernel)
        stride = fixed.get("stride", int(rng.integers(1, 3)))
        if stride == 1:
            pitch = out_pitch = width + int(rng.integers(0, 4))
        else:
            out = -(-width // 2)
            out_pitch = -(-out // lanes) * lanes if out > lanes // 2 else lanes // 2
            unit = lanes // 2  # so that every second line starts in the same lane
            pitch = -(-width // unit) * unit
        values = {
            "width": width, "height": height, "kernel": kernel, "padding": padding,
            "dilation": tuple(int(d) for d in rng.integers(1, 4, 2)), "stride": stride,
            "blocks": int(rng.integers(1, 4)), "first_line": int(rng.integers(0, 4)),
            "pitch": pitch, "out_pitch": out_pitch,
            "row_tiles": int(rng.integers(1, 8)), "beats": int(rng.integers(1, 4)),
            "column_tiles": int(rng.integers(1, 3)), "columns_inner": int(rng.integers(0, 2)),
            "origin": int(rng.choice([1000, -10, DEPTH - 20])), "a": int(rng.integers(990, 1010)),
        }  # fmt: skip
        return cls(lanes, **values | fixed)

    def taps(self):
        """Yield (dy, dx) of every tap."""
        for ky in range(self.kernel[0]):
            for kx in range(self.kernel[1]):
                yield (
                    ky * self.dilation[0] - self.padding[0],
                    kx * self.dilation[1] - self.padding[1],
                )

    @property
    def two_lines(self):
        """Whether the halves of a row tile are two output lines (stride 2)."""
        return self.stride == 2 and self.out_pitch < self.lanes

    def tap_entries(self):
        entries = []
        for dy, dx in self.taps():
            first = (self.first_line * self.stride + dy) * self.pitch + dx
            second = first + (2 * self.pitch if self.two_lines else self.lanes)
            base = self.origin - self.a
            entries.append(encode_tap(
                offset=base + first // self.lanes * self.blocks, rotate=first % self.lanes,
                dx=dx, dy=dy,
                second_offset=base + second // self.lanes * self.blocks,
                second_rotate=second % self.lanes,
            ))  # fmt: skip
        return entries

    def instructions(self, tap):
        """WINDOW and GEMM of the layer's band."""
        lines = {"line_tiles": 0, "line_stride": 0}
        row_stride = self.blocks
        if self.two_lines:
            row_stride = 4 * self.pitch // self.lanes * self.blocks
        elif self.stride == 2:
            row_stride = 2 * self.blocks
            tiles = self.out_pitch // self.lanes
            step = 2 * self.pitch // self.lanes * self.blocks - tiles * row_stride
            lines = {"line_tiles": tiles, "line_stride": step}
        window = instruction(
            Opcode.WINDOW, tap=tap, taps=len(list(self.taps())), stride=self.stride,
            width=self.width, height=self.height, pitch=self.out_pitch,
            y=self.first_line * self.stride,
            tile_x=self.stride * (self.lanes % self.out_pitch),
            tile_y=self.stride * (self.lanes // self.out_pitch),
            tile_stride=self.blocks, **lines,
        )  # fmt: skip
        layer = gemm(
            a=self.a, a_row_stride=row_stride, a_column_stride=7, row_tiles=self.row_tiles,
            column_tiles=self.column_tiles, columns_inner=self.columns_inner, blocks=self.blocks,
            beats=self.beats, pool=self.pool,
        )  # fmt: skip
        return window, layer

    def words(self, memory):
        """Return what the array has to get, (load, lane, position), from the memory's words."""
        lanes = self.lanes
        pixel = np.arange(self.row_tiles * lanes)
        y = (self.first_line + pixel // self.out_pitch) * self.stride
        x = pixel % self.out_pitch * self.stride
        words = []
        for column, (dy, dx) in itertools.product(range(self.column_tiles), self.taps()):
            at_x, at_y = x + dx, y + dy
            inside = (at_x >= 0) & (at_x < self.width) & (at_y >= 0) & (at_y < self.height)
            source = np.where(inside, at_y * self.pitch + at_x, 0)
            for block in range(self.blocks):
                address = self.origin + source // lanes * self.blocks + block + 7 * column
                counts = inside & (address >= 0) & (address < DEPTH)
                found = memory[np.where(counts, address, 0), source % lanes]
                words.append(np.where(counts[:, None], found, -128 * self.pool))
        words = np.stack(words).reshape(self.column_tiles, -1, self.row_tiles, lanes, BLOCK)
        if self.pool:
            words = words.max(axis=1, keepdims=True)
        words = words.swapaxes(1, 2)  # (column tile, row tile, tap and block, lane, position)
        if self.columns_inner:
            words = words.swapaxes(0, 1)
        return words.reshape(-1, lanes, BLOCK)

    @property
    def steps(self):
        """Steps of the GEMM."""
        block = max(self.beats, self.stride)
        blocks = len(list(self.taps())) * self.blocks
        return self.row_tiles * self.column_tiles * blocks * block


def run(config, memory, taps, words, cycles=100_000, grant=lambda cycle: True, refusable=False):
    """Run instruction words; return acceptances, (cycle, word) of all loads, beats, errors."""
    dut = Core(config, refusable)
    accepted, loads, beats, errors = [], [], [], []
    size = config.lanes * BLOCK
    rubbish = int.from_bytes(b"\x5a" * size, "little")

    async def bench(ctx):
        entries = len(dut.tap_write.data)
        ctx.set(dut.tap_write.enable, 1)
        for row in range(0, len(taps), entries):
            ctx.set(dut.tap_write.address, row // entries)
            ctx.set(dut.tap_write.data, (taps[row : row + entries] + [0] * entries)[:entries])
            await ctx.tick()
        ctx.set(dut.tap_write.enable, 0)
        ctx.set(dut.admit, 1)
        ctx.set(dut.release, 1)  # the shadow is free in the cycle after the next
        pending = list(enumerate(words))
        data, loaded, idle, cycle = rubbish, False, 0, 0
        while idle < window_cycles(config) + 10:
            assert cycle < cycles
            ctx.set(dut.activation.data.as_value(), data)
            ctx.set(dut.instruction.valid, bool(pending))
            granted = grant(cycle)
            ctx.set(dut.grant, granted)
            if pending:
                index, word = pending[0]
                ctx.set(dut.instruction.payload, {"word": word, "index": index})
                if ctx.get(dut.instruction.ready):
                    accepted.append(cycle)
                    pending.pop(0)
            assert granted or not ctx.get(dut.reads)
            if loaded:
                value = ctx.get(dut.word.as_value()).to_bytes(size, "little")
                loads.append((cycle - 1, np.frombuffer(value, np.int8).reshape(-1, BLOCK)))
            beat = ctx.get(dut.beat)
            loaded = beat.valid and beat.load
            if beat.valid:
                beats.append((cycle, beat.position, beat.finish, ctx.get(dut.weight.address)))
            data = rubbish
            if ctx.get(dut.activation.enable):
                port = dut.activation
                first, second, lanes = (
                    ctx.get(signal) for signal in (port.address, port.second, port.uses_second)
                )
                read = [
                    memory[(second if lanes >> r & 1 else first) % len(memory), r]
                    for r in range(config.lanes)
                ]
                data = int.from_bytes(np.stack(read).tobytes(), "little")
            if ctx.get(dut.error.valid):
                errors.append((ctx.get(dut.error.cause), ctx.get(dut.error.index)))
            works = (pending or ctx.get(dut.active)) and not errors
            idle = 0 if works else idle + 1
            await ctx.tick()
            cycle += 1

    simulate(dut, bench, timeout=cycles + 1000)
    return accepted, loads, beats, errors


def rubbish_memory(config, seed):
    shape = (config.activation_depth, config.lanes, BLOCK)
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


def check(config, cases, **options):
    """Run as many cases as there are taps for, and compare the words.

    Returns acceptances, beats and the cases.
    """
    memory = rubbish_memory(config, 0)
    taps, words = [], []
    for case in cases:
        entries = case.tap_entries()
        if len(taps) + len(entries) > config.tap_depth:
            break
        words += case.instructions(len(taps))
        taps += entries
    cases = cases[: len(words) // 2]
    accepted, loads, beats, errors = run(
        config, memory, taps, [word.encode() for word in words], **options
    )
    assert errors == []
    expected = np.concatenate([case.words(memory) for case in cases])
    assert len(loads) == len(expected)
    for number, ((_, word), reference) in enumerate(zip(loads, expected, strict=True)):
        assert (word == reference).all(), f"load {number}"
    return accepted, beats, cases


@pytest.mark.parametrize("lanes", [2, 4, 14])
@pytest.mark.parametrize("seed", range(6))
def test_words_and_times(lanes, seed):
    """Any geometry; instructions follow each other at once, and beats stand where they should."""
    rng = np.random.default_rng([lanes, seed])
    config = config_of(lanes)
    cases = [Case.random(rng, lanes) for _ in range(20)]
    for case in cases:
        if rng.random() < 0.3:
            case.pool = case.blocks = case.beats = 1
    accepted, beats, cases = check(config, cases)
    cycle = 0
    for case, window, layer in zip(cases, accepted[::2], accepted[1::2], strict=True):
        assert window == cycle
        assert layer == window + lanes + Window.DEFINE_CYCLES
        cycle = layer + case.steps
    assert beats[-1][0] == cycle + window_cycles(config)


@pytest.mark.parametrize("seed", range(4))
def test_reads_that_are_refused(seed):
    """A core that shares its port waits for it, and gets the same words."""
    rng = np.random.default_rng(seed)
    lanes = 4
    cases = [Case.random(rng, lanes) for _ in range(20)]
    for case in cases[::3]:
        case.pool = case.blocks = case.beats = 1
    gaps = rng.random(100_000) < 0.5
    check(config_of(lanes), cases, grant=lambda cycle: bool(gaps[cycle]), refusable=True)


def test_beats_of_strided_blocks_come_a_step_later_where_reads_may_be_refused():
    case = Case(4, width=16, height=4, kernel=(3, 3), padding=(1, 1), dilation=(1, 1), stride=2,
                blocks=2, pitch=16, out_pitch=8, first_line=0, row_tiles=3, beats=3)  # fmt: skip
    for refusable in (False, True):
        (_, start), beats, _ = check(config_of(4), [case], refusable=refusable)
        first = start + 1 + window_cycles(config_of(4)) + refusable
        assert [cycle for cycle, *_ in beats] == list(range(first, first + 3 * 9 * 2 * 3))
        assert [position for _, position, *_ in beats] == [0, 1, 2] * (3 * 9 * 2)


def test_a_tap_per_cycle():
    """Depthwise convolution: one beat per tap, without a bubble."""
    case = Case(4, width=10, height=6, kernel=(3, 3), padding=(1, 1), dilation=(1, 1), stride=1,
                blocks=1, pitch=10, out_pitch=10, first_line=0, row_tiles=5)  # fmt: skip
    (_, start), beats, _ = check(config_of(4), [case])
    first = start + 1 + window_cycles(config_of(4))
    assert [cycle for cycle, *_ in beats] == list(range(first, first + 45))
    assert [row for *_, row in beats] == [*range(9)] * 5


WINDOW = {"taps": 1, "stride": 1, "pitch": 1}
GOOD = [instruction(Opcode.WINDOW, **WINDOW), gemm()]
ILLEGAL = {
    "stride-0": [instruction(Opcode.WINDOW, **WINDOW | {"stride": 0})],
    "stride-3": [instruction(Opcode.WINDOW, **WINDOW | {"stride": 3})],
    "taps": [instruction(Opcode.WINDOW, **WINDOW | {"taps": 0})],
    "pitch": [instruction(Opcode.WINDOW, **WINDOW | {"pitch": 0})],
    "tap": [instruction(Opcode.WINDOW, **WINDOW | {"tap": 63, "taps": 2})],
    "no-window": [gemm()],
    "pool-blocks": [*GOOD, gemm(pool=1, blocks=2)],
    "pool-beats": [*GOOD, gemm(pool=1, beats=2)],
    "pool-not-windowed": [*GOOD, gemm(pool=1, windowed=0)],
    "words": [*GOOD, gemm(words=config_of(4).words_per_tile + 1)],
}  # fmt: skip


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_instruction(name):
    config = config_of(4)
    words = [i.encode() for i in ILLEGAL[name]]
    accepted, loads, _, errors = run(config, rubbish_memory(config, 0), [0], [*words, words[0]])
    assert errors == [(Cause.ILLEGAL_INSTRUCTION, len(words) - 1)]
    assert len(accepted) == len(words)
    assert len(loads) == (name not in ("no-window",) and len(words) > 1)


def test_no_activation_address_is_beyond_a_windowed_gemm():
    """The last taps are legal, and addresses beyond the memory read padding."""
    config = config_of(4)
    words = [
        instruction(Opcode.WINDOW, **WINDOW | {"tap": 63, "width": 9, "height": 9}),
        gemm(a=0xFFFF, a_row_stride=0xFFFF, row_tiles=2, words=config.words_per_tile),
    ]
    _, loads, _, errors = run(
        config, rubbish_memory(config, 0), [0] * 64, [word.encode() for word in words]
    )
    assert errors == []
    assert [np.abs(word).max() for _, word in loads] == [0, 0]
