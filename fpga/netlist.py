"""What is connected to what in a flattened module of a Yosys JSON netlist."""

from collections import defaultdict
from collections.abc import Iterator

Pin = tuple[str, str, int]  #: cell, port, bit of it


def pins(cell: dict) -> Iterator[tuple[str, int, int, bool]]:
    """Yield port, place in it, net, and whether the cell drives it, of all that is not constant."""
    for port, bits in cell["connections"].items():
        is_output = cell["port_directions"][port] == "output"
        for place, bit in enumerate(bits):
            if isinstance(bit, int):
                yield port, place, bit, is_output


def connections(module: dict) -> tuple[dict[int, str], dict[int, list[Pin]]]:
    """Return the cell that drives each net, and the pins that each net drives.

    Ports of the module count neither as drivers nor as loads: :func:`ports` has their nets.
    """
    drivers: dict[int, str] = {}
    loads: dict[int, list[Pin]] = defaultdict(list)
    for name, cell in module["cells"].items():
        for port, place, bit, is_output in pins(cell):
            if is_output:
                drivers[bit] = name
            else:
                loads[bit].append((name, port, place))
    return drivers, loads


def ports(module: dict) -> set[int]:
    """Return the nets that are ports of the module."""
    return {bit for port in module.get("ports", {}).values() for bit in port["bits"]}
