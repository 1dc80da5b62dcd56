"""What the operands of instructions can hold, by the names that the compiler has for it."""

from twillcore.isa import ISA, TAP, Opcode

_GEMM = {field.name: field for field in ISA[Opcode.GEMM].operands}
_WINDOW = {field.name: field for field in ISA[Opcode.WINDOW].operands}
_TAP = {field.name: field for field in TAP}

MOST_ROW_TILES = _GEMM["row_tiles"].high
MOST_TAPS = _WINDOW["taps"].high
MOST_PIXELS = _WINDOW["width"].high  #: of a map, in each direction
LARGEST_PITCH = _WINDOW["pitch"].high
TAP_REACH = tuple((_TAP[name].low, _TAP[name].high) for name in ("dy", "dx"))
LARGEST_STRIDE = 2  #: of a window, horizontally
WINDOW_STRIDES = (1, 2)  #: of both directions, that need no more than a window
