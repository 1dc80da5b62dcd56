"""Sequencer and window of a GEMM core: the words that the array gets, against feature maps in numpy."""

from dataclasses import dataclass

import numpy as np
import pytest

from twillcore.config import PRESETS
from twillcore.hw.sequencer import Sequencer
from twillcore.hw.window import Window
from twillcore.isa import ISA, TAP, Cause, Instruction, Opcode
from twillcore.sim.bench import simulate
from twillcore.timing import window_cycles

BLOCK = 8
A = 1000  # first word of the feature map, with room before and after it


def config_of(lanes, activation_depth=2048):
    return PRESETS["tiny"].replace(
        lanes=lanes, dsp_columns=lanes * 8 if lanes < 8 else 56, tap_depth=64, operand_depth=0,
        activation_depth=activation_depth, axi_data_bits=64 if lanes % 4 == 0 else 32,
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
    dilation: int
    stride: int
    blocks: int
    pitch: int
    out_pitch: int
    first_line: int  # of the band, in output lines
    row_tiles: int
    beats: int = 1
    pool: int = 0

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
            # Lines (or pairs of them, if a tile is two lines) start in the same lane.
            unit = lanes // 2 if out_pitch >= lanes else lanes // np.gcd(lanes, 4)
            pitch = -(-width // unit) * unit
        values = {
            "width": width, "height": height, "kernel": kernel, "padding": padding,
            "dilation": int(rng.integers(1, 4)), "stride": stride, "blocks": int(rng.integers(1, 4)),
            "pitch": pitch, "out_pitch": out_pitch, "first_line": int(rng.integers(0, 4)),
            "row_tiles": int(rng.integers(1, 8)), "beats": int(rng.integers(1, 4)),
        }  # fmt: skip
        return cls(lanes, **values | fixed)

    def taps(self):
        """Yield (dy, dx) of every tap."""
        for ky in range(self.kernel[0]):
            for kx in range(self.kernel[1]):
                yield (
                    ky * self.dilation - self.padding[0],
                    kx * self.dilation - self.padding[1],
                )

    @property
    def tile_lines(self):
        """Output lines per row tile, if there are several (stride 2)."""
        return 2 if self.stride == 2 and self.out_pitch < self.lanes else 1

    def tap_entries(self):
        entries = []
        for dy, dx in self.taps():
            pixel = dy * self.pitch + dx
            half = self.lanes  # input pixels between the halves
            if self.tile_lines == 2:
                half = 2 * self.pitch
            second = pixel + half
            entries.append(encode_tap(
                offset=pixel // self.lanes * self.blocks, rotate=pixel % self.lanes, dx=dx, dy=dy,
                second_offset=second // self.lanes * self.blocks,
                second_rotate=second % self.lanes,
            ))  # fmt: skip
        return entries

    def instructions(self, tap):
        """WINDOW and GEMM of the layer's band."""
        y = self.first_line * self.stride
        line_tiles = line_stride = 0
        row_stride = self.blocks
        if self.stride == 2:
            if self.tile_lines == 2:
                row_stride = 4 * self.pitch // self.lanes * self.blocks
            else:
                line_tiles = self.out_pitch // self.lanes
                row_stride = 2 * self.blocks
                step = 2 * self.pitch // self.lanes * self.blocks - line_tiles * row_stride
                if step < 0:  # the last tile of a line is further on than the next line's first
                    step += 1 << 17
                    row_stride, line_tiles, step = row_stride, line_tiles, step
                line_stride = step
        first = y * self.pitch
        assert first % self.lanes == 0
        window = instruction(
            Opcode.WINDOW, tap=tap, taps=len(list(self.taps())), stride=self.stride,
            width=self.width, height=self.height, pitch=self.out_pitch, y=y,
            tile_x=self.stride * (self.lanes % self.out_pitch),
            tile_y=self.stride * (self.lanes // self.out_pitch),
            tile_stride=self.blocks, line_tiles=line_tiles, line_stride=line_stride,
        )  # fmt: skip
        layer = gemm(
            a=A + first // self.lanes * self.blocks, a_row_stride=row_stride,
            row_tiles=self.row_tiles, blocks=self.blocks, beats=self.beats, pool=self.pool,
        )  # fmt: skip
        return window, layer
