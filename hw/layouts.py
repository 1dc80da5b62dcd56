"""Records that cross component boundaries, from :mod:`twillcore.isa` and the configuration."""

from amaranth.hdl import signed, unsigned
from amaranth.lib import data

from twillcore.config import Config
from twillcore.isa import ISA, PARAMETER, TAP, WORD_BITS, Opcode
from twillcore.numerics import LANE_MULTIPLIER_BITS

INDEX_BITS = 24  # an instruction's position in its program


def _shape(field):
    return signed(field.bits) if field.signed else unsigned(field.bits)


def instruction_layout(opcode: Opcode) -> data.StructLayout:
    """Return the layout of one instruction word, header and reserved bits included."""
    row = ISA[opcode]
    members = {field.name: _shape(field) for field, _ in row.fields()}
    return data.StructLayout(members | {"reserved": WORD_BITS - row.width})


#: An instruction on its way to an engine: the word and its position in the program.
ISSUED = data.StructLayout({"word": WORD_BITS, "index": INDEX_BITS})


def _entry_layout(fields) -> data.StructLayout:
    """Return the layout of a 64-bit entry, reserved bits included."""
    members = {field.name: _shape(field) for field in fields}
    return data.StructLayout(members | {"reserved": 64 - sum(field.bits for field in fields)})


#: One entry of parameter or norm memory.
PARAMETER_LAYOUT = _entry_layout(PARAMETER)

#: One entry of tap memory.
TAP_LAYOUT = _entry_layout(TAP)

#: What divides a row by its sum.
LANE_SCALE = data.StructLayout({"multiplier": LANE_MULTIPLIER_BITS, "shift": 6})


def activation_word(config: Config) -> data.ArrayLayout:
    """``lanes`` blocks of ``block`` int8: ``word[lane][position]``."""
    return data.ArrayLayout(data.ArrayLayout(signed(8), config.block), config.lanes)


def wide_word(config: Config) -> data.ArrayLayout:
    """``lanes`` blocks of ``block`` int16: ``word[lane][position]``."""
    return data.ArrayLayout(data.ArrayLayout(signed(16), config.block), config.lanes)


def weight_row(config: Config) -> data.StructLayout:
    """One row of the weight memory: a weight and its position in the block per column."""
    return data.StructLayout({
        "weight": data.ArrayLayout(signed(8), config.dsp_columns),
        "index": data.ArrayLayout(unsigned(config.index_bits), config.dsp_columns),
    })  # fmt: skip


def operand_row(config: Config) -> data.ArrayLayout:
    """One row of the operand memory: an int8 per column."""
    return data.ArrayLayout(signed(8), config.dsp_columns)


def plane_row(config: Config) -> data.ArrayLayout:
    """One row of the LUT core's weight memory: a bit per column and position of the block."""
    return data.ArrayLayout(unsigned(config.block), config.lut_columns)
