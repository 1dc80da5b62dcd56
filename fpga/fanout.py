"""Copies of what drives too many inputs, in an ECP5 netlist of Yosys.

A flip-flop whose output goes to a thousand clock enables all over the chip is at best in the middle
of them. Vendors' tools copy such drivers; Yosys and nextpnr do not. Loads are divided in the order
of their names, so that a copy's loads are of one component, one lane, one column.
"""

import re
from collections.abc import Iterator

from twillcore.fpga.netlist import Pin, connections, pins

MOST_LOADS = 128
COPIED = ("TRELLIS_FF", "LUT4")  # cells of one output
CLOCKS = ("CLK", "WCK", "CLK0", "CLKA", "CLKB")  # have wires of their own


def copy_drivers(module: dict, most: int = MOST_LOADS) -> int:
    """Copy flip-flops and LUTs of ``module``, in place, until none drives more than ``most`` loads.

    ``module`` is one of a Yosys JSON netlist, flattened and mapped. Copies have the same inputs and
    so the same values. Clocks, and what other cells or ports drive, stay as they are. Returns the
    number of copies. ``most`` must be more than a cell has inputs, 5, or there is no end to it.
    """
    cells, nets = module["cells"], module["netnames"]
    drivers, loads = connections(module)
    names = {bit: name for name, net in nets.items() for bit in net["bits"]}
    following = max((bit for bit in names if isinstance(bit, int)), default=1)
    copies = 0
    waiting = [bit for bit in loads if len(loads[bit]) > most]
    while waiting:  # a copy is a load more of the original's inputs, which may make those too many
        bit = waiting.pop()
        original = drivers.get(bit)
        if len(loads[bit]) <= most or original is None or cells[original]["type"] not in COPIED:
            continue
        if any(port in CLOCKS for _, port, _ in loads[bit]):
            continue
        loads[bit], *others = _divided(loads[bit], most)
        for part in others:
            following, copies = following + 1, copies + 1
            new, name = following, f"{original}$copy{copies}"
            cell = cells[name] = _copy(cells[original], new)
            for port, place, source, is_output in pins(cell):
                if not is_output:
                    loads[source].append((name, port, place))
                    if len(loads[source]) > most:
                        waiting.append(source)
            for cell_name, port, place in part:
                cells[cell_name]["connections"][port][place] = new
            drivers[new], loads[new] = name, part
            nets[f"{names.get(bit, original)}$copy{copies}"] = {
                "hide_name": 0, "bits": [new], "attributes": {},
            }  # fmt: skip
    return copies


def _copy(cell: dict, output: int) -> dict:
    """Return a cell of one output with the same inputs."""
    directions = cell["port_directions"]
    connections = {
        port: [output] if directions[port] == "output" else [*bits]
        for port, bits in cell["connections"].items()
    }
    return cell | {"connections": connections}


def _divided(loads: list[Pin], most: int) -> Iterator[list[Pin]]:
    """Yield parts of about equal size."""
    ordered = sorted(loads, key=lambda load: ([*_natural(load[0])], load[1:]))
    count = -(-len(ordered) // most)
    for n in range(count):
        yield ordered[n * len(ordered) // count : (n + 1) * len(ordered) // count]


def _natural(name: str) -> Iterator[tuple[int, str]]:
    """Yield the parts of a name, so that they sort with numbers by size."""
    for part in re.split(r"(\d+)", name):
        yield (int(part), "") if part.isdigit() else (-1, part)
