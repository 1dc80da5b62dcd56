"""The instruction set, as data.

Every other form of the ISA derives from :data:`ISA`: ``encode`` and ``decode`` here, the hardware
layouts in :mod:`twillcore.hw.layouts`, the tables of ``docs/isa.md`` and the disassembler.

All words are :data:`WORD_BITS` wide and start with :data:`HEADER`: the opcode, the engines whose
token the instruction waits for (one token each), and the engines to which it signals one token when
it has ended. Sizes are in units of the memory they address: activation words (lanes * block int8),
wide words (lanes * block int16), weight rows (columns int8), 64-bit parameters. DRAM addresses are
bytes from the program's base, multiples of the AXI width in bytes.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum

WORD_BITS = 256
WORD_BYTES = WORD_BITS // 8


class Engine(IntEnum):
    """Units that work side by side, each with its own queue; the bit positions of token masks."""

    LOAD = 0
    STORE = 1
    GEMM = 2
    VECTOR = 3
    MOVE = 4
    LUT = 5


ENGINE_BITS = len(Engine)


class Opcode(IntEnum):
    """Operation codes."""

    HALT = 0x0
    LOAD = 0x1
    STORE = 0x2
    GEMM = 0x3
    MOVE = 0x4
    SOFTMAX = 0x5
    LAYER_NORM = 0x6
    ELEMENTWISE = 0x7
    LUT_GEMM = 0x8
    WINDOW = 0x9
    LUT_WINDOW = 0xA


class Memory(IntEnum):
    """On-chip memories that instructions name."""

    ACTIVATION = 0
    WIDE = 1
    WEIGHT = 2
    PARAMETER = 3
    NORM = 4
    TABLE = 5
    LUT_WEIGHT = 6
    TAP = 7


class WeightFormat(IntEnum):
    """How weight rows lie in DRAM; a row has one int8 per column.

    DENSE: rows only, every position of a block in order. BITMAP: per block, first block/8 header
    rows (bit p of column c's bitmap is set if position p is kept; byte j of the bitmap stands in
    header row j), then ``beats`` rows of the kept values, lowest position first. INDEX: before
    every two rows one header row with their positions, the first row's in bits 3:0 of each byte
    and the second's in bits 7:4 (an odd last row has a header row of its own).
    """

    DENSE = 0
    BITMAP = 1
    INDEX = 2


class Function(IntEnum):
    """What the drain does to a value before it is narrowed."""

    NONE = 0
    RELU = 1
    TABLE = 2


class MoveMode(IntEnum):
    """KEYS: a lane becomes a column (K of QK^T). VALUES: a lane becomes a row (V of PV)."""

    KEYS = 0
    VALUES = 1


class ElementwiseOp(IntEnum):
    """Operation of ELEMENTWISE."""

    ADD = 0
    MULTIPLY = 1


@dataclass(frozen=True)
class Field:
    """One operand: ``bits`` wide, two's complement if ``signed``, an ``enum`` if given."""

    name: str
    bits: int
    meaning: str
    signed: bool = False
    enum: type[IntEnum] | None = None

    @property
    def low(self) -> int:
        """Smallest value that fits."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """Largest value that fits."""
        return (1 << (self.bits - self.signed)) - 1


HEADER = (
    Field("opcode", 4, "operation", enum=Opcode),
    Field("wait", ENGINE_BITS, "engines of whose tokens one each is taken before the start"),
    Field("signal", ENGINE_BITS, "engines to which a token goes at the end"),
)
HEADER_BITS = sum(field.bits for field in HEADER)


@dataclass(frozen=True)
class Format:
    """One row of the ISA: operands from the LSB up, right above the header."""

    opcode: Opcode
    engine: Engine | None
    operands: tuple[Field, ...]
    meaning: str

    def __post_init__(self) -> None:
        names = [field.name for field in (*HEADER, *self.operands)]
        if len(set(names)) != len(names):
            raise ValueError(f"{self.opcode.name}: two operands of one name in {names}")
        if self.width > WORD_BITS:
            raise ValueError(f"{self.opcode.name} needs {self.width} bits, a word has {WORD_BITS}")
        for field in self.operands:
            if field.enum and max(field.enum) > field.high:
                raise ValueError(f"{self.opcode.name}.{field.name}: {field.enum} does not fit")

    @property
    def width(self) -> int:
        """Bits in use, header included."""
        return HEADER_BITS + sum(field.bits for field in self.operands)

    def fields(self) -> Iterator[tuple[Field, int]]:
        """Yield every field, header included, with its offset in bits."""
        offset = 0
        for field in (*HEADER, *self.operands):
            yield field, offset
            offset += field.bits


def _address(name: str, meaning: str) -> Field:
    return Field(name, 16, meaning)


_ROW_TILES = Field("row_tiles", 12, "row tiles of `lanes` rows, at least 1")

_GEMM_OPERANDS = (
    _address("a", "first activation word"),
    Field("a_row_stride", 16, "words from row tile to row tile"),
    Field("a_column_stride", 12, "words from column tile to column tile (0: same rows)"),
    _ROW_TILES,
    Field("column_tiles", 12, "column tiles of `columns` columns, at least 1"),
    Field("blocks", 12, "blocks of K, at least 1"),
    Field("beats", 5, "beats per block: N of N:B, 1..B"),
    _address("w", "first weight row; rows follow each other, column tile by column tile"),
    Field("operand", 1, "1: rows come from the operand memory, else the weight memory"),
    Field("counted", 1, "1: beat n takes position n of the block, else the stored index"),
    Field("columns_inner", 1, "1: column tiles are the inner loop, else row tiles are"),
    Field("accumulate", 1, "1: continue on the accumulators of the last instruction"),
    Field("hold", 1, "1: leave the sums in the accumulators, drain nothing"),
    _address("parameter", "parameter of the first column"),
    Field("lane_scaled", 1, "1: scale by lane, else by column"),
    Field("lane", 10, "lane scale of the first row tile"),
    Field("keep_maximum", 1, "1: keep each row's maximum; needs columns_inner"),
    Field("maximum", 10, "row maximum of the first row tile"),
    Field("residual", 1, "1: add the wide word of the same place"),
    _address("residual_address", "wide word of the first output word"),
    Field("residual_row_stride", 16, "wide words from row tile to row tile"),
    Field("residual_shift", 5, "right shift of the residual, -8..15", signed=True),
    Field("function", 2, "applied before narrowing", enum=Function),
    Field("wide", 1, "1: write int16 to the wide memory, else int8 to the activations"),
    _address("out", "first output word"),
    Field("out_row_stride", 16, "output words from row tile to row tile"),
    Field("words", 5, "words per tile that are drained, 0: columns / block; outputs, residuals and"
          " parameters advance by so many from column tile to column tile"),
    Field("windowed", 1, "1: K is the taps of the core's window, `blocks` words each"),
    Field("pool", 1, "1: the block is the maximum over the taps; needs windowed and one block of"
          " one beat"),
    Field("residual_narrow", 1, "1: the residual is an int8 word of the activation memory"),
)  # fmt: skip

_WINDOW_OPERANDS = (
    Field("tap", 10, "entry of the first tap"),
    Field("taps", 8, "taps, at least 1"),
    Field("stride", 2, "input pixels per output pixel, 1 or 2"),
    Field("width", 10, "input pixels per line: taps to the left and right of them are padding"),
    Field("height", 10, "input lines: taps above and below them are padding"),
    Field("pitch", 10, "output pixels per line, those beyond the output's width included"),
    Field("y", 12, "input line of the first output line, less the tap's dy", signed=True),
    Field("tile_x", 11, "stride * (lanes mod pitch)"),
    Field("tile_y", 7, "stride * (lanes div pitch)"),
    Field("tile_stride", 16, "words from an input row tile to the next"),
    Field("line_tiles", 10, "row tiles per output line at whose end line_stride is added; 0: none"),
    Field("line_stride", 16, "words added to a_row_stride at the end of a line"),
)

_ROWS = (
    Format(
        Opcode.HALT,
        None,
        (),
        "End of program: when every engine has finished, the machine is done.",
    ),
    Format(
        Opcode.LOAD,
        Engine.LOAD,
        (
            Field("memory", 3, "destination", enum=Memory),
            Field("format", 2, "how weights lie in DRAM; DENSE for every other memory",
                  enum=WeightFormat),
            Field("beats", 5, "N of N:B, for BITMAP"),
            Field("dram", 32, "first byte"),
            Field("dram_stride", 32, "bytes from run to run"),
            _address("local", "first unit in the destination"),
            Field("local_stride", 16, "units from run to run"),
            Field("count", 16, "units per run, at least 1 (TABLE: 256 int16 entries count 64)"),
            Field("runs", 12, "runs, at least 1"),
        ),
        "Copy `runs` runs of `count` units from DRAM to a memory, expanding sparse weights.",
    ),
    Format(
        Opcode.STORE,
        Engine.STORE,
        (
            Field("memory", 3, "source: ACTIVATION or WIDE", enum=Memory),
            Field("dram", 32, "first byte"),
            Field("dram_stride", 32, "bytes from run to run"),
            _address("local", "first word in the source"),
            Field("local_stride", 16, "words from run to run"),
            Field("count", 16, "words per run, at least 1"),
            Field("runs", 12, "runs, at least 1"),
        ),
        "Copy `runs` runs of `count` words to DRAM.",
    ),
    Format(
        Opcode.GEMM,
        Engine.GEMM,
        _GEMM_OPERANDS,
        "For every row tile and column tile: multiply, accumulate over `blocks` blocks, then"
        " (acc + bias) * scale, residual, function, and write `words` words.",
    ),
    Format(
        Opcode.LUT_GEMM,
        Engine.LUT,
        _GEMM_OPERANDS,
        "As GEMM, on the LUT core: `beats` is the number of bits of a weight, 1..8, and weight rows"
        " are bit-planes in the LUT core's memory. `operand`, `counted`, `pool` and `keep_maximum`"
        " are 0. A tile with `hold` has more than one beat.",
    ),
    Format(
        Opcode.WINDOW,
        Engine.GEMM,
        _WINDOW_OPERANDS,
        "Set the window that the following windowed GEMMs of the core gather through.",
    ),
    Format(
        Opcode.LUT_WINDOW,
        Engine.LUT,
        _WINDOW_OPERANDS,
        "As WINDOW, for the LUT core.",
    ),
    Format(
        Opcode.MOVE,
        Engine.MOVE,
        (
            Field("mode", 1, "KEYS or VALUES", enum=MoveMode),
            _address("a", "first activation word"),
            Field("a_row_stride", 16, "words from row tile to row tile"),
            _ROW_TILES,
            Field("blocks", 12, "KEYS: channel blocks; VALUES: channel blocks, a multiple of"
                  " columns / block"),
            _address("out", "first operand row"),
            Field("column_stride", 16, "operand rows from column tile to column tile"),
        ),
        "Copy activations to the operand memory. KEYS: channel c of row tile t becomes row"
        " `out + t // q * column_stride + c`, lanes in column group t mod q, q = columns / lanes."
        " VALUES: lane l of row tile t, channels of column tile j, becomes row"
        " `out + j * column_stride + t * lanes + l`.",
    ),
    Format(
        Opcode.SOFTMAX,
        Engine.VECTOR,
        (
            _address("a", "first wide word of logits"),
            Field("a_row_stride", 16, "wide words from row tile to row tile"),
            _ROW_TILES,
            Field("words", 12, "words per row tile, at least 1"),
            Field("maximum", 10, "row maximum of the first row tile"),
            Field("lane", 10, "lane scale of the first row tile, written"),
            Field("numerator", 16, "of the lane scale, 2**15..2**16-1"),
            Field("shift", 6, "of the lane scale, 23..63"),
            _address("out", "first activation word of exponentials"),
            Field("out_row_stride", 16, "words from row tile to row tile"),
        ),
        "Exponentials of logits below their row's maximum, and the lane scale that divides by"
        " their sum (`twillcore.numerics.exponential`, `lane_scale`).",
    ),
    Format(
        Opcode.LAYER_NORM,
        Engine.VECTOR,
        (
            _address("a", "first wide word"),
            Field("a_row_stride", 16, "wide words from row tile to row tile"),
            _ROW_TILES,
            Field("words", 12, "words per row tile, at least 1"),
            Field("channels", 12, "C, the channels that count"),
            Field("epsilon", 32, "added to C * sum(q**2) - sum(q)**2"),
            Field("parameter", 16, "norm parameter of the first channel"),
            Field("narrow", 1, "1: write int8 to the activation memory"),
            _address("out", "first activation word"),
            Field("out_row_stride", 16, "activation words from row tile to row tile"),
            Field("wide", 1, "1: write int16 to the wide memory"),
            _address("wide_out", "first wide word of the output"),
            Field("wide_out_row_stride", 16, "wide words from row tile to row tile"),
        ),
        "Layer norm of every lane over its channels (`twillcore.numerics.layer_norm`).",
    ),
    Format(
        Opcode.ELEMENTWISE,
        Engine.VECTOR,
        (
            Field("op", 1, "ADD or MULTIPLY", enum=ElementwiseOp),
            Field("a_wide", 1, "1: first operand in wide memory, else in activation memory"),
            _address("a", "first word"),
            Field("a_row_stride", 16, "words from row tile to row tile"),
            Field("b_wide", 1, "1: second operand in wide memory, else in activation memory"),
            _address("b", "first word"),
            Field("b_row_stride", 16, "words from row tile to row tile"),
            _ROW_TILES,
            Field("words", 12, "words per row tile, at least 1"),
            Field("a_multiplier", 16, "scale of a (of the product, for MULTIPLY)", signed=True),
            Field("b_multiplier", 16, "scale of b; unused by MULTIPLY", signed=True),
            Field("shift", 6, "right shift of the scaled sum or product"),
            Field("narrow_shift", 4, "right shift to int8, when the output is not wide"),
            Field("wide", 1, "1: write int16 to the wide memory, else int8 to the activations"),
            _address("out", "first output word"),
            Field("out_row_stride", 16, "output words from row tile to row tile"),
        ),
        "Scaled sum or product of two tensors (`twillcore.numerics.elementwise_add`,"
        " `elementwise_multiply`).",
    ),
)  # fmt: skip

ISA: Mapping[Opcode, Format] = {row.opcode: row for row in _ROWS}

#: One 64-bit entry of parameter or norm memory. Drain: (acc + bias) * multiplier >> shift, int8
#: outputs are narrowed by narrow_shift. Layer norm: bias is beta, multiplier is gamma.
PARAMETER = (
    Field("bias", 32, "added to the accumulator (drain) or the product (layer norm)", signed=True),
    Field("multiplier", 16, "scale", signed=True),
    Field("shift", 6, "right shift of the product"),
    Field("narrow_shift", 4, "right shift from int16 to int8"),
)
PARAMETER_BYTES = 8
#: Memories of 64-bit entries, of which LOAD writes all that come with a beat at once.
ENTRY_MEMORIES = (Memory.PARAMETER, Memory.NORM, Memory.TABLE, Memory.TAP)

#: One 64-bit entry of tap memory: which words a window reads for one tap, and where it looks.
TAP = (
    Field("offset", 17, "words from the row tile's address to the tap's", signed=True),
    Field("rotate", 6, "memory lane of window lane 0; the lanes before it come one tile later"),
    Field("dx", 8, "pixels from the output's column to the tap's", signed=True),
    Field("dy", 8, "lines from the output's line to the tap's", signed=True),
    Field("second_offset", 17, "as offset, for the second half of the lanes (stride 2)",
          signed=True),
    Field("second_rotate", 6, "as rotate, for the second half of the lanes (stride 2)"),
)  # fmt: skip
TABLE_BYTES = 512


class Cause(IntEnum):
    """Why the machine stopped; the value of the ERROR_CAUSE register."""

    NONE = 0
    ILLEGAL_INSTRUCTION = 1
    ADDRESS_OUT_OF_RANGE = 2
    AXI_READ_ERROR = 3
    AXI_WRITE_ERROR = 4
    WATCHDOG = 5
    TOKEN_OVERFLOW = 6


CAUSE_MEANINGS = {
    Cause.NONE: "no error",
    Cause.ILLEGAL_INSTRUCTION: "unknown opcode, or an operand that no instruction may have",
    Cause.ADDRESS_OUT_OF_RANGE: "an on-chip address beyond the end of its memory",
    Cause.AXI_READ_ERROR: "the memory answered a read with an error",
    Cause.AXI_WRITE_ERROR: "the memory answered a write with an error",
    Cause.WATCHDOG: "no engine made progress: a token that never comes, or a memory that hangs",
    Cause.TOKEN_OVERFLOW: "more tokens signalled than a counter holds",
}
TOKEN_COUNTER_BITS = 12

#: Most bits of a weight of the LUT core: beats of a LUT_GEMM's block.
LUT_WEIGHT_BITS = 8


@dataclass(frozen=True)
class Instruction:
    """An opcode with operand values and token masks (bit e of a mask is engine e)."""

    opcode: Opcode
    operands: Mapping[str, int]
    wait: int = 0
    signal: int = 0

    @property
    def engine(self) -> Engine | None:
        """The engine that executes it; none for HALT."""
        return ISA[self.opcode].engine

    def __getitem__(self, name: str) -> int:
        return self.operands[name]

    def encode(self) -> int:
        """Return the instruction word.

        Raises
        ------
        ValueError
            If operands are missing, unknown or do not fit their field; all of them are named.
        """
        row = ISA[self.opcode]
        names = {field.name for field in row.operands}
        if self.operands.keys() != names:
            missing, unknown = names - self.operands.keys(), self.operands.keys() - names
            raise ValueError(
                f"{self.opcode.name}: operands missing {sorted(missing)}, unknown {sorted(unknown)}"
            )
        values = {"opcode": self.opcode, "wait": self.wait, "signal": self.signal, **self.operands}
        word, problems = 0, []
        for field, offset in row.fields():
            value = int(values[field.name])
            if not field.low <= value <= field.high:
                problems.append(f"{field.name}={value} does not fit in {field.bits} bits")
            word |= (value & (1 << field.bits) - 1) << offset
        if problems:
            raise ValueError(f"{self.opcode.name}: " + ", ".join(problems))
        return word

    @classmethod
    def decode(cls, word: int) -> "Instruction":
        """Split a word. Raises ``ValueError`` on an unknown opcode or a set reserved bit."""
        try:
            row = ISA[Opcode(word & (1 << HEADER[0].bits) - 1)]
        except (ValueError, KeyError):
            raise ValueError(f"unknown opcode in {word:#x}") from None
        if word >> row.width:
            raise ValueError(f"{row.opcode.name}: reserved bits set in {word:#x}")
        values = {}
        for field, offset in row.fields():
            value = word >> offset & (1 << field.bits) - 1
            values[field.name] = value - (value << 1 & 1 << field.bits) if field.signed else value
        del values["opcode"]
        return cls(row.opcode, wait=values.pop("wait"), signal=values.pop("signal"),
                   operands=values)  # fmt: skip

    def __str__(self) -> str:
        parts = [self.opcode.name.lower()]
        for label, mask in (("wait", self.wait), ("signal", self.signal)):
            if mask:
                engines = (engine.name.lower() for engine in Engine if mask >> engine & 1)
                parts.append(f"{label}={','.join(engines)}")
        for field in ISA[self.opcode].operands:
            value = self.operands[field.name]
            if field.enum:
                text = field.enum(value).name.lower() if value in tuple(field.enum) else str(value)
            else:
                text = str(value)
            parts.append(f"{field.name}={text}")
        return " ".join(parts)


def assemble(line: str) -> Instruction:
    """Parse the text that ``str(instruction)`` writes; raises ``ValueError`` with the reason."""
    mnemonic, *pairs = line.split()
    try:
        opcode = Opcode[mnemonic.upper()]
    except KeyError:
        raise ValueError(f"unknown mnemonic {mnemonic!r}") from None
    fields = {field.name: field for field in ISA[opcode].operands}
    masks = {"wait": 0, "signal": 0}
    operands: dict[str, int] = {}
    for pair in pairs:
        match = re.fullmatch(r"(\w+)=(\S+)", pair)
        if not match:
            raise ValueError(f"{mnemonic}: {pair!r} is not name=value")
        name, value = match.groups()
        try:
            if name in masks:
                masks[name] = sum(1 << Engine[e.upper()] for e in value.split(","))
            else:
                enum = fields[name].enum if name in fields else None
                named = enum is not None and value.upper() in enum.__members__
                operands[name] = int(enum[value.upper()]) if named else int(value, 0)
        except (KeyError, ValueError):
            raise ValueError(f"{mnemonic}: bad value in {pair!r}") from None
    instruction = Instruction(opcode, operands, **masks)
    instruction.encode()
    return instruction


def encode_parameter(bias: int, multiplier: int, shift: int, narrow_shift: int) -> int:
    """Return one 64-bit parameter entry; raises ``ValueError`` if a value does not fit."""
    word, offset = 0, 0
    for field, value in zip(PARAMETER, (bias, multiplier, shift, narrow_shift), strict=True):
        if not field.low <= value <= field.high:
            raise ValueError(f"parameter {field.name}={value} does not fit in {field.bits} bits")
        word |= (int(value) & (1 << field.bits) - 1) << offset
        offset += field.bits
    return word


def markdown() -> str:
    """Return ``docs/isa.md``."""
    lines = [
        "# Instruction set",
        "",
        "Generated from `twillcore/isa.py` by `python -m twillcore.isa`; a test fails when stale.",
        "",
        f"Instruction words are {WORD_BITS} bits. Every word starts with the header:",
        "",
        "| field | bits | meaning |",
        "|---|---|---|",
    ]
    offset = 0
    for field in HEADER:
        lines.append(f"| `{field.name}` | {offset + field.bits - 1}:{offset} | {field.meaning} |")
        offset += field.bits
    lines += ["", "Engines, the bits of `wait` and `signal`: "
              + ", ".join(f"{e.value} {e.name}" for e in Engine) + "."]  # fmt: skip
    for row in ISA.values():
        engine = f"engine {row.engine.name}" if row.engine is not None else "no engine"
        lines += ["", f"## {row.opcode.name} ({row.opcode:#x}, {engine})", "", row.meaning]
        if row.operands:
            lines += ["", "| field | bits | meaning |", "|---|---|---|"]
        for field, offset in row.fields():
            if field in HEADER:
                continue
            values = ""
            if field.enum:
                values = " (" + ", ".join(f"{v.value} {v.name}" for v in field.enum) + ")"
            lines.append(
                f"| `{field.name}` | {offset + field.bits - 1}:{offset} | {field.meaning}{values} |"
            )
    doc = " ".join((WeightFormat.__doc__ or "").split())
    lines += ["", "## Weight formats", "", doc, "", "## Parameter entry (64 bits)", "",
              "| field | bits | meaning |", "|---|---|---|"]  # fmt: skip
    offset = 0
    for field in PARAMETER:
        lines.append(f"| `{field.name}` | {offset + field.bits - 1}:{offset} | {field.meaning} |")
        offset += field.bits
    lines += ["", "## Causes of a stop", "", "| value | cause | meaning |", "|---|---|---|"]
    lines += [f"| {c.value} | {c.name} | {CAUSE_MEANINGS[c]} |" for c in Cause]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from pathlib import Path

    Path(__file__).resolve().parents[1].joinpath("docs/isa.md").write_text(markdown())
