"""Windows and the LUT core on the functional engine: hand-made geometry against torch."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from tests.agree.programs import Program
from twillcore import numerics
from twillcore.config import PRESETS, Config
from twillcore.image import to_words
from twillcore.isa import TAP, Cause, Engine, Memory, Opcode, WeightFormat
from twillcore.sim.functional import FunctionalEngine
from twillcore.sim.machine_error import MachineError
from twillcore.weights import decode_planes, encode_planes, encode_rows

TINY = PRESETS["tiny"].replace(tap_depth=64, lut_columns=8, lut_weight_depth=256)
WIDE = TINY.replace(lanes=14, operand_depth=0, dsp_columns=24, lut_columns=16)


@dataclasses.dataclass(frozen=True)
class Map:
    """A feature map (height, width, channels), the pitch of its lines, and how it is convolved."""

    height: int
    width: int
    channels: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    out_pitch: int = 0  # 0: as wide as the input's

    @property
    def pitch(self) -> int:
        return self.out_pitch * self.stride or self.width

    @property
    def out(self) -> tuple[int, int]:
        spans = [(size - 1) * d + 1 for size, d in zip(self.kernel, self.dilation, strict=True)]
        sizes = zip((self.height, self.width), self.padding, spans, strict=True)
        return tuple((size + 2 * pad - span) // self.stride + 1 for size, pad, span in sizes)


def tap_entries(config: Config, m: Map, words: int) -> np.ndarray:
    """Taps of a map whose row tiles are ``words`` words apart, from the definition of TAP."""
    entries = []
    for i, j in itertools.product(*map(range, m.kernel)):
        dy, dx = i * m.dilation[0] - m.padding[0], j * m.dilation[1] - m.padding[1]
        first = dy * m.pitch + dx  # pixels from the row tile's first one
        # The second half of the lanes starts in another place of the line, or in the next line.
        half = config.lanes // 2
        pitch = m.pitch // m.stride
        second = first + half // pitch * m.stride * m.pitch + half % pitch * m.stride
        offset, second_offset = (p // config.lanes * words for p in (first, second))
        values = offset, first % config.lanes, dx, dy, second_offset, second % config.lanes
        word, at = 0, 0
        for field, value in zip(TAP, values, strict=True):
            assert field.low <= value <= field.high
            word |= (value & (1 << field.bits) - 1) << at
            at += field.bits
        entries.append(word)
    return np.array(entries, "<u8")


def pixels(x: np.ndarray, pitch: int) -> np.ndarray:
    """A (channels, height, width) map as rows, lines ``pitch`` apart; junk between them."""
    channels, height, width = x.shape
    rows = np.full((height, pitch, channels), 99)
    rows[:, :width] = x.transpose(1, 2, 0)
    return rows.reshape(1, -1, channels)


def convolution(config, m, x, core=Engine.GEMM, lines=None, **gemm):
    """A program that has the map loaded, its taps and its WINDOW; and the operands of its GEMM.

    ``lines``: first output line and their number, of a band.
    """
    program = Program(config)
    words = -(-x.shape[0] // config.block)
    data = to_words(pixels(x, m.pitch), config).astype(np.int8)
    program.add(Opcode.LOAD, memory=Memory.ACTIVATION, dram=program.place(data.tobytes()),
                count=data[..., 0, 0].size, runs=1, local=7)  # fmt: skip
    taps = tap_entries(config, m, words)
    program.add(Opcode.LOAD, memory=Memory.TAP, dram=program.place(taps.tobytes()), count=len(taps),
                runs=1, local=3)  # fmt: skip
    first, count = lines or (0, m.out[0])
    pitch = m.pitch // m.stride
    start, end = first * pitch, (first + count) * pitch
    assert start % config.lanes == 0
    tiles_per_line = pitch / config.lanes
    step, line_tiles, line_stride = words, 0, 0
    if m.stride == 2:  # per output tile two input tiles; at the end of a line one is left out
        step = 2 * words
        line = m.stride * m.pitch // config.lanes
        assert tiles_per_line.is_integer() or tiles_per_line == 0.5
        line_tiles = max(1, int(tiles_per_line))
        lines_of_tile = max(1, int(1 / tiles_per_line))
        assert m.stride * m.pitch * lines_of_tile % config.lanes == 0
        line_stride = (line * lines_of_tile - 2 * line_tiles) * words
    window = {
        "tap": 3, "taps": len(taps), "stride": m.stride, "width": m.width, "height": m.height,
        "pitch": pitch, "y": first * m.stride, "tile_x": m.stride * (config.lanes % pitch),
        "tile_y": m.stride * (config.lanes // pitch), "tile_stride": words,
        "line_tiles": line_tiles, "line_stride": line_stride,
    }  # fmt: skip
    program.add(Opcode.WINDOW if core == Engine.GEMM else Opcode.LUT_WINDOW, **window)
    a = 7 + first * m.stride * m.pitch // config.lanes * words
    row_tiles = -(-(end - start) // config.lanes)
    return program, gemm | {
        "a": a, "a_row_stride": step, "row_tiles": row_tiles, "windowed": 1, "blocks": words,
    }  # fmt: skip


def outputs(program, config, m, operands, channels, lines=None, opcode=Opcode.GEMM, strict=True):
    """Run the GEMM of a program and return its real pixels, (channels, height, width)."""
    words = -(-channels // config.block)
    count = (lines or (0, m.out[0]))[1]
    tiles = operands["row_tiles"]
    out = config.activation_depth - tiles * words
    pitch = m.pitch // m.stride
    slot = program.slot("y", "int8", (1, tiles * config.lanes, channels), output=True)
    program.add(opcode, out=out, out_row_stride=words, **operands)
    program.add(Opcode.STORE, memory=Memory.ACTIVATION, dram=slot.address, local=out,
                count=tiles * words, runs=1)  # fmt: skip
    y = FunctionalEngine(strict=strict).run(program.image(), {}).outputs["y"]
    y = y[0, : count * pitch].reshape(count, pitch, channels)[:, : m.out[1]]
    return y.transpose(2, 0, 1)


def expected(m: Map, x, weight, groups=1) -> np.ndarray:
    result = torch.nn.functional.conv2d(
        torch.from_numpy(x).double()[None], torch.from_numpy(weight).double(),
        stride=m.stride, padding=m.padding, dilation=m.dilation, groups=groups,
    )  # fmt: skip
    return result[0].numpy().astype(np.int64)


def load_parameters(program, channels, shift=4):
    """bias 3, acc * 2 >> 8, narrowed by ``shift``."""
    program.add(Opcode.LOAD, memory=Memory.PARAMETER, runs=1, count=channels,
                dram=program.place(program_parameters(channels, shift)))  # fmt: skip


def program_parameters(channels, shift) -> bytes:
    return Program().data + b"".join(
        int(3 | 2 << 32 | 4 << 48 | shift << 54).to_bytes(8, "little") for _ in range(channels)
    )


def drained(acc, shift=4):
    return numerics.narrow(numerics.scale_accumulator(acc, 3, 2, 4), shift)


def rows_of(weight, config, core):
    """(N, C, height, width) as (N, K) with K = taps, padded channels."""
    n, channels = weight.shape[:2]
    padded = np.zeros((n, *weight.shape[2:], -(-channels // config.block) * config.block), np.int8)
    padded[..., :channels] = weight.transpose(0, 2, 3, 1)
    return padded.reshape(n, -1)


MAPS = {
    "same": Map(6, 7, 11, (3, 3), padding=(1, 1)),
    "narrower than lanes": Map(5, 3, 8, (3, 3), padding=(1, 1)),
    "one pixel wide": Map(9, 1, 8, (3, 3), padding=(1, 1)),
    "no padding": Map(6, 7, 8, (3, 2)),
    "dilated": Map(9, 8, 8, (3, 3), padding=(2, 2), dilation=(2, 2)),
    "dilated in one direction": Map(9, 8, 8, (3, 3), padding=(1, 3), dilation=(1, 3)),
    "more padding than kernel": Map(4, 5, 8, (2, 2), padding=(1, 0)),
    "stride 2": Map(8, 8, 8, (3, 3), stride=2, padding=(1, 1), out_pitch=4),
    "stride 2, half a tile per line": Map(7, 4, 9, (3, 3), stride=2, padding=(1, 1), out_pitch=2),
    "stride 2, two tiles per line": Map(5, 15, 8, (3, 3), stride=2, padding=(1, 1), out_pitch=8),
    "stride 2, pointwise": Map(6, 8, 8, (1, 1), stride=2, out_pitch=4),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("core", [Engine.GEMM, Engine.LUT])
def test_a_windowed_gemm_is_a_convolution(name, core):
    m, config, n = MAPS[name], TINY, 16
    rng = np.random.default_rng(len(name))
    x = rng.integers(-128, 128, (m.channels, m.height, m.width))
    lut = core == Engine.LUT
    weight = rng.integers(*((-4, 4) if lut else (-128, 128)), (n, m.channels, *m.kernel))
    program, operands = convolution(config, m, x, core)
    values = rows_of(weight, config, core)
    if lut:
        rows = encode_planes(values, 3, config)
        program.add(Opcode.LOAD, memory=Memory.LUT_WEIGHT, dram=program.place(rows.tobytes()),
                    count=len(rows) // 2, runs=2, local_stride=len(rows) // 2,
                    dram_stride=rows.nbytes // 2, local=1)  # fmt: skip
        operands |= {"beats": 3, "w": 1}
    else:
        rows = encode_rows(values, 8, WeightFormat.DENSE, config)
        program.add(Opcode.LOAD, memory=Memory.WEIGHT, dram=program.place(rows),
                    count=len(rows) // 8, runs=1)  # fmt: skip
        operands |= {"beats": 8}
    load_parameters(program, n, 8)
    opcode = Opcode.LUT_GEMM if lut else Opcode.GEMM
    # Lanes behind the last output line look beyond the map: its words may be anything.
    y = outputs(program, config, m, operands | {"column_tiles": 2}, n, None, opcode, False)
    assert (y == drained(expected(m, x, weight), 8)).all()
    assert y.std() > 0


def test_a_map_of_14_lanes_and_partial_column_tiles():
    """Two column tiles of two words out of three each."""
    m, config, n = Map(14, 14, 8, (3, 3), stride=2, padding=(1, 1), out_pitch=7), WIDE, 32
    rng = np.random.default_rng(3)
    x = rng.integers(-128, 128, (m.channels, m.height, m.width))
    weight = rng.integers(-128, 128, (n, m.channels, *m.kernel))
    program, operands = convolution(config, m, x)
    values = np.zeros((48, 72), np.int8)
    values[0:16], values[24:40] = rows_of(weight, config, None).reshape(2, 16, 72)
    rows = encode_rows(values, 8, WeightFormat.DENSE, config)
    program.add(Opcode.LOAD, memory=Memory.WEIGHT, dram=program.place(rows),
                count=len(rows) // 24, runs=1)  # fmt: skip
    load_parameters(program, n, 8)
    operands |= {"beats": 8, "column_tiles": 2, "words": 2}
    y = outputs(program, config, m, operands, n)
    assert (y == drained(expected(m, x, weight), 8)).all()


@pytest.mark.parametrize("lines", [(0, 2), (2, 3), (4, 4)])
def test_a_band_is_a_window_of_its_own(lines):
    m, config, n = Map(8, 6, 8, (3, 3), padding=(1, 1)), TINY, 8
    rng = np.random.default_rng(4)
    x = rng.integers(-128, 128, (8, 8, 6))
    weight = rng.integers(-128, 128, (n, 8, 3, 3))
    program, operands = convolution(config, m, x, lines=lines)
    rows = encode_rows(rows_of(weight, config, None), 8, WeightFormat.DENSE, config)
    program.add(Opcode.LOAD, memory=Memory.WEIGHT, dram=program.place(rows), count=72, runs=1)
    load_parameters(program, n, 8)
    operands |= {"beats": 8, "column_tiles": 1}
    y = outputs(program, config, m, operands, n, lines)
    whole = drained(expected(m, x, weight), 8)
    assert (y == whole[:, lines[0] : lines[0] + lines[1]]).all()


@pytest.mark.parametrize("name", ["same", "dilated", "stride 2"])
def test_depthwise_convolution_takes_one_beat_per_tap(name):
    m = dataclasses.replace(MAPS[name], channels=24)
    config = TINY.replace(dsp_columns=16)
    rng = np.random.default_rng(5)
    x = rng.integers(-128, 128, (24, m.height, m.width))
    weight = rng.integers(-128, 128, (24, 1, *m.kernel)).astype(np.int8)
    taps = weight[0, 0].size
    program, operands = convolution(config, m, x)
    values = np.zeros((3, 16, taps, 8), np.int8)
    for word, c in itertools.product(range(3), range(8)):
        values[word, c, :, c] = weight[8 * word + c, 0].ravel()
    rows = encode_rows(values.reshape(48, -1), 1, WeightFormat.INDEX, config)
    program.add(Opcode.LOAD, memory=Memory.WEIGHT, dram=program.place(rows), count=3 * taps, runs=1,
                format=WeightFormat.INDEX)  # fmt: skip
    load_parameters(program, 24, 4)
    operands |= {"beats": 1, "blocks": 1, "column_tiles": 3, "words": 1, "a_column_stride": 1}
    y = outputs(program, config, m, operands, 24, strict=False)
    assert (y == drained(expected(m, x, weight, groups=24))).all()


@pytest.mark.parametrize("name", ["same", "stride 2", "no padding"])
def test_pooling_keeps_the_maximum_of_what_is_inside(name):
    m = dataclasses.replace(MAPS[name], channels=16)
    config = TINY
    rng = np.random.default_rng(6)
    x = rng.integers(-128, -60, (16, m.height, m.width))  # padding must not count
    program, operands = convolution(config, m, x)
    rows = encode_rows(np.tile(np.eye(8, dtype=np.int8), (2, 1)), 1, WeightFormat.INDEX, config)
    program.add(Opcode.LOAD, memory=Memory.WEIGHT, dram=program.place(rows), count=2, runs=1,
                format=WeightFormat.INDEX)  # fmt: skip
    entries = program.parameters(np.zeros(16, int), 1, 0, 0)
    program.add(Opcode.LOAD, memory=Memory.PARAMETER, dram=entries, count=16, runs=1)
    operands |= {"beats": 1, "blocks": 1, "column_tiles": 2, "pool": 1, "a_column_stride": 1}
    y = outputs(program, config, m, operands, 16, strict=False)
    result = torch.nn.functional.max_pool2d(
        torch.from_numpy(x).double()[None], m.kernel, m.stride, m.padding
    )
    assert (y == result[0].numpy()).all()


def test_a_residual_of_the_activation_memory():
    rng = np.random.default_rng(8)
    x = rng.integers(-128, 128, (1, 8, 8))
    residual = rng.integers(-128, 128, (1, 8, 8))
    config = TINY.replace(wide_depth=0, operand_depth=0, norm_depth=0, lane_depth=0)
    program = Program(config)
    for name, local in (("x", 0), ("r", 20)):
        slot = program.slot(name, "int8", x.shape)
        program.add(Opcode.LOAD, memory=Memory.ACTIVATION, dram=slot.address, local=local, count=2,
                    runs=1)  # fmt: skip
    rows = encode_rows(np.eye(8, dtype=np.int8), 8, WeightFormat.DENSE, config)
    program.add(Opcode.LOAD, memory=Memory.WEIGHT, dram=program.place(rows), count=8, runs=1)
    load_parameters(program, 8, 2)
    program.add(Opcode.GEMM, row_tiles=2, a_row_stride=1, column_tiles=1, blocks=1, beats=8,
                residual=1, residual_narrow=1, residual_address=20, residual_row_stride=1,
                residual_shift=-1, out=20, out_row_stride=1)  # fmt: skip
    slot = program.slot("y", "int8", x.shape, output=True)
    program.add(Opcode.STORE, memory=Memory.ACTIVATION, dram=slot.address, local=20, count=2,
                runs=1)  # fmt: skip
    y = FunctionalEngine(strict=True).run(program.image(), {"x": x, "r": residual}).outputs["y"]
    wanted = numerics.scale_accumulator(x, 3, 2, 4)
    wanted = numerics.narrow(numerics.add_residual(wanted, residual, -1), 2)
    assert (y == wanted).all()


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("block", [8, 16])
def test_planes_hold_the_weights(bits, block):
    config = TINY.replace(block=block, dsp_columns=16, lut_columns=16)
    rng = np.random.default_rng(bits)
    half = 1 << (bits - 1)
    values = rng.integers(-half, half, (19, 3 * block - 1)).astype(np.int8)
    rows = encode_planes(values, bits, config)
    assert rows.shape == (2 * 3 * bits, 2 * block)
    decoded = decode_planes(rows, bits, config)
    dense = decoded.reshape(2, 3 * block, 16).transpose(0, 2, 1).reshape(32, -1)
    assert (dense[:19, :-1] == values).all()
    assert not dense[19:].any()
    assert not dense[:, -1].any()


def test_a_plane_has_bit_k_of_byte_c_for_position_k_of_column_c():
    values = np.zeros((8, 8), np.int8)
    values[2, 5] = -3  # 101
    assert (encode_planes(values, 3, TINY)[:, 2] == [32, 0, 32]).all()
    with pytest.raises(ValueError, match=r"weights are -3..0, not 2 bits"):
        encode_planes(values, 2, TINY)
    with pytest.raises(ValueError, match=r"bits must be 1..8, not 9"):
        encode_planes(values, 9, TINY)


ILLEGAL = {
    "no window has been set": (TINY, Opcode.GEMM, {"windowed": 1}),
    "there is no window": (TINY.replace(tap_depth=0), Opcode.WINDOW, {"taps": 1, "stride": 1}),
    "there is no window.: gemm": (TINY.replace(tap_depth=0), Opcode.GEMM, {"windowed": 1}),
    "function table": (TINY.replace(function_table=False), Opcode.GEMM, {"function": 2}),
    "stride is not 1 or 2": (TINY, Opcode.WINDOW, {"taps": 1, "pitch": 1, "stride": 3}),
    "pools what is no window": (TINY, Opcode.GEMM, {"pool": 1}),
    "counted is not for the LUT core": (TINY, Opcode.LUT_GEMM, {"counted": 1}),
    "beats is not 1..8": (TINY.replace(block=16, dsp_columns=16, lut_columns=16), Opcode.LUT_GEMM,
                          {"beats": 9}),
    "holds no tile of a single beat": (TINY, Opcode.LUT_GEMM, {"hold": 1}),
    "more words than": (TINY, Opcode.LUT_GEMM, {"words": 2}),
}  # fmt: skip


@pytest.mark.parametrize("message", ILLEGAL)
def test_illegal_windows(message):
    config, opcode, operands = ILLEGAL[message]
    program = Program(config)
    if opcode in (Opcode.GEMM, Opcode.LUT_GEMM):
        operands = {"row_tiles": 1, "column_tiles": 1, "blocks": 1, "beats": 1} | operands
    program.add(opcode, **operands)
    with pytest.raises(MachineError, match=message) as caught:
        FunctionalEngine().run(program.image(), {})
    assert caught.value.cause == Cause.ILLEGAL_INSTRUCTION
