"""Stages of the drain's pipeline, in the drain's module."""

import itertools

from amaranth.hdl import Signal
from amaranth.lib import data
from amaranth.utils import ceil_log2


class DrainPipeline:
    """Registers per lane, and what a column takes along: ``stage[n]``.

    Stage n holds the column that was number 0 of its tile n cycles ago, or its successors. Values
    move only with a valid column, which saves power, and time in simulation.
    """

    def __init__(self, m, config, stages):
        self._m = m
        self._lanes = range(config.lanes)
        control = data.StructLayout({
            "valid": 1,
            "first": 1,  # column 0 of its tile
            "fresh": 1,  # column 0 of its row tile: maxima start anew
            "last": 1,  # last column of its tile
            "first_word": 1,  # in the first word of its tile
            "channel": ceil_log2(config.block),  # position in its word
            "lane_scaled": 1,
            "lane": 10,
            "residual": 1,
            "residual_narrow": 1,
            "residual_shift": 5,
            "function": 2,
            "lut": 1,
        })  # fmt: skip
        self.stage = [Signal(control, name=f"stage_{n}") for n in range(stages + 1)]
        m.d.sync += [later.eq(stage) for stage, later in itertools.pairwise(self.stage)]

    def registers(self, n, shape, values, name):
        """Return a register per lane, loaded in stage n: they belong to stage n + 1."""
        made = [Signal(shape, name=f"{name}_{lane}", reset_less=True) for lane in self._lanes]
        with self._m.If(self.stage[n].valid):
            self._m.d.sync += [r.eq(v) for r, v in zip(made, values, strict=True)]
        return made

    def delay(self, n, shape, values, cycles, name):
        """Return the values of stage n for use in stage n + cycles."""
        for k in range(n, n + cycles):
            values = self.registers(k, shape, values, f"{name}_{k + 1}")
        return values
