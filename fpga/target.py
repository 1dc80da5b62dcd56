"""Elaboration for a device family: what hardware may know of the chip that it will be on."""

import re

from amaranth.back import rtlil
from amaranth.hdl import Elaboratable

from twillcore.hw.verilog import without_zero_contents


class Target:
    """Stands for Amaranth's ``platform`` where no board is known, only the family of the part.

    A board's own platform has ``device``, too.
    """

    _DEVICES = {"ecp5": "LFE5U", "xc7": "XC7"}  # noqa: RUF012  only the start of the name is looked at

    def __init__(self, family: str):
        self.device = self._DEVICES.get(family, "")


def to_rtlil(design: Elaboratable, name: str, family: str) -> str:
    """Return ``design`` in Yosys' language, with the primitives of ``family``."""
    with without_zero_contents():
        text = rtlil.convert(design, name=name, platform=Target(family), emit_src=False)
    return without_brackets(without_collisions(text))


def without_brackets(rtlil_text: str) -> str:
    """Rename wires like ``word[3]``, Amaranth's names of the elements of arrays.

    ABC9 takes that name for bit 3 of ``word`` too, and with both in a design Yosys fails in
    ABC_OPS_REINTEGRATE: an assertion on the widths of a connection.
    """
    return re.sub(  # a slice has a space before its bracket
        r"\\\S*\[\S*", lambda name: name[0].replace("[", ".").replace("]", ""), rtlil_text
    )


def without_collisions(rtlil_text: str) -> str:
    """Let synchronous reads of a word that is written in the same cycle return anything.

    Amaranth promises the old word. Where block RAM cannot do that, Yosys delays every write by a
    cycle and compares addresses: a thousand flip-flops and LUTs per memory. Nothing reads what is
    being written, since programs wait by tokens for what they read.
    """

    def relax(cell: re.Match) -> str:
        text = cell[0]
        mask = re.search(r"\\TRANSPARENCY_MASK (\d+)'0+\n", text)
        if mask is None or "\\CLK_ENABLE 1" not in text or mask[1] == "0":
            return text
        ones = f"{mask[1]}'{'1' * int(mask[1])}"
        return re.sub(r"(\\COLLISION_X_MASK) \S+", rf"\1 {ones}", text)

    return re.sub(r"cell \$memrd_v2 .*?\n  end\n", relax, rtlil_text, flags=re.DOTALL)
