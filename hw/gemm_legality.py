"""Operands that a GEMM core refuses before it begins, out of an instruction that is offered."""

from amaranth.hdl import Const

from twillcore.isa import LUT_WEIGHT_BITS, Engine, Function, Opcode


def illegal_gemm(offered, config, engine, window_known, more_taps):
    """Return whether an operand is one that no GEMM of the core may have."""
    opcode, most_beats, columns = Opcode.GEMM, config.block, config.dsp_columns
    absent = Const(0)  # what the core cannot do
    if engine == Engine.LUT:
        opcode, most_beats, columns = Opcode.LUT_GEMM, LUT_WEIGHT_BITS, config.lut_columns
        absent = offered.operand | offered.counted | offered.pool | offered.keep_maximum
    several_tiles = (offered.row_tiles != 1) | (offered.column_tiles != 1)
    several_beats = (offered.blocks != 1) | (offered.beats != 1)
    if engine == Engine.LUT:  # twillcore.hw.lut_array has no time for it
        absent |= offered.hold & ~several_beats & (~offered.windowed | (more_taps == 0))
    functions = Function if config.function_table else (Function.NONE, Function.RELU)
    return (
        (offered.opcode != opcode)
        | absent
        | (offered.row_tiles == 0)
        | (offered.column_tiles == 0)
        | (offered.blocks == 0)
        | (offered.beats == 0)
        | (offered.beats > most_beats)
        | (offered.words > columns // config.block)
        | (offered.windowed & ~window_known)
        | (offered.pool & (~offered.windowed | several_beats))
        | (offered.keep_maximum & ~offered.columns_inner)
        | (offered.function > max(functions))
        | (offered.residual & (offered.residual_shift < -8))
        | ((offered.hold | offered.accumulate) & several_tiles)
    )


def illegal_window(offered, config):
    """Return whether an operand is one that no WINDOW may have."""
    return (
        (offered.stride == 0)
        | (offered.stride > 2)
        | (offered.taps == 0)
        | (offered.tap + offered.taps > config.tap_depth)
        | (offered.pitch == 0)
    )
