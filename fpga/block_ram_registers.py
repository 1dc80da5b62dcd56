"""Registers of block RAM in the place of flip-flops behind it, in an ECP5 netlist of Yosys.

A word leaves DP16KD 5.7 ns after the clock (speed grade 6), but 0.9 ns after it from the block's
output register. Yosys has no rule that uses that register, so a flip-flop that has nothing but
block RAM in front of it stands outside, and the 5.7 ns and the way there are in one cycle.
Source: Lattice FPGA-TN-02204, ECP5 Memory Usage Guide: OCE enables the register, by itself.
"""

import re
from collections.abc import Mapping

from twillcore.fpga.netlist import Pin, connections, ports

#: A flip-flop that drives more stays where it can be among them: block RAM is at the chip's edges
#: and in a few rows of it.
MOST_LOADS = 8
_WIDEST = 36  # such a port reads through the outputs of both, with the clock of B


def absorb_registers(module: dict) -> int:
    """Move flip-flops into the block RAMs that they follow, in place; return how many went.

    ``module`` is one of a Yosys JSON netlist, flattened and mapped. A port's flip-flops go if all
    of its outputs that anybody uses lead to a flip-flop each and to nothing else, and these have
    one clock, the port's, one enable, and no reset, start as 0, which is what the block's register
    is, and drive at most :data:`MOST_LOADS` inputs.
    """
    cells = module["cells"]
    _, loads = connections(module)
    outside = ports(module)
    gone = 0
    for block in [cell for cell in cells.values() if cell["type"] == "DP16KD"]:
        widths = [int(block["parameters"][f"DATA_WIDTH_{side}"], 2) for side in "AB"]
        for sides in ("AB",) if widths[1] == _WIDEST else ("A", "B"):
            registers = _registers(block, sides, cells, loads, outside)
            if not registers:
                continue
            enable = _enable(cells[registers[next(iter(registers))]])
            for side in sides:
                block["parameters"][f"REGMODE_{side}"] = "OUTREG"
                block["connections"][f"OCE{side}"] = [enable]
            for port, name in registers.items():
                block["connections"][port] = cells.pop(name)["connections"]["Q"]
            gone += len(registers)
    return gone


def _registers(
    block: dict, sides: str, cells: dict, loads: Mapping[int, list[Pin]], outside: set[int]
) -> dict[str, str]:
    """Return the flip-flop by output of these sides of the block; none if one cannot go."""
    registers: dict[str, str] = {}
    enables = set()
    for side in sides:
        is_rising = block["parameters"][f"CLK{side}MUX"] == f"CLK{side}"
        if not is_rising or block["connections"][f"RST{side}"] != ["0"]:
            return {}
    clock = block["connections"][f"CLK{sides[-1]}"]
    outputs = re.compile(f"DO[{sides}]\\d+")
    for port, bits in block["connections"].items():
        if not outputs.fullmatch(port) or not any(bit in outside or loads.get(bit) for bit in bits):
            continue
        following = loads.get(bits[0], ())
        if outside & {*bits} or len(following) > 1:
            return {}
        name, pin, _ = following[0]
        cell = cells[name]
        if pin != "DI" or not _is_plain(cell, clock):
            return {}
        if len(loads[cell["connections"]["Q"][0]]) > MOST_LOADS:
            return {}
        enables.add(_enable(cell))
        registers[port] = name
    return registers if len(enables) == 1 else {}


def _enable(flip_flop: dict) -> int | str:
    """Return the net that enables a flip-flop, or the constant that does."""
    mux = flip_flop["parameters"].get("CEMUX", "CE").strip()
    return flip_flop["connections"]["CE"][0] if mux == "CE" else mux


def _is_plain(flip_flop: dict, clock: list) -> bool:
    """Return whether a flip-flop has the rising edge of ``clock``, no reset, and starts as 0."""
    kind, pins = flip_flop["parameters"], flip_flop["connections"]
    return (
        flip_flop["type"] == "TRELLIS_FF"
        and pins["CLK"] == clock
        and kind.get("CLKMUX", "CLK") == "CLK"
        and kind.get("CEMUX", "CE").strip() in ("CE", "1")
        and pins.get("LSR", ["0"]) == ["0"]
        and kind.get("LSRMUX", "LSR") == "LSR"
        and kind.get("REGSET", "RESET") == "RESET"
    )
