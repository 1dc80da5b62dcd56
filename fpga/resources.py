"""What a configuration costs on an FPGA, by Yosys synthesis: no vendor tool, minutes."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from twillcore.cache import cache_folder, content_key
from twillcore.config import Config
from twillcore.errors import TwillcoreError
from twillcore.fpga.parts import FAMILY_BLOCKS, Part
from twillcore.fpga.tools import YOSYS, Progress, silent


def split_before_luts(command: str) -> str:
    """Return synthesis ``command`` with every vector cut into bits before it maps LUTs.

    Without, ABC9 of Yosys 0.70 fails on some designs, the array among them: names that it makes of
    vectors meet those of others.
    """
    return f"{command} -run begin:map_luts; splitnets; {command} -run map_luts:"


#: Yosys commands per family. The design is flattened: what a part must hold is what is left after
#: optimisation across modules, and names of cells still tell which module they came from. On Xilinx
#: families shift registers stay flip-flops, since LUTs are what is scarce.
SYNTHESIS = {
    "xc7": split_before_luts("synth_xilinx -family xc7 -noiopad -flatten -nosrl -top {top}"),
    "xcup": split_before_luts("synth_xilinx -family xcup -noiopad -flatten -nosrl -top {top}"),
    "ecp5": split_before_luts("synth_ecp5 -top {top}"),
    "ice40": "synth_ice40 -dsp -top {top}",
}
STAT = {"xc7": "-tech xilinx", "xcup": "-tech xilinx", "ecp5": "", "ice40": ""}

#: How many memory blocks (RAMB36, DP16KD, SB_RAM40_4K) one cell is.
MEMORY_CELLS = {
    "RAMB36E1": 1.0, "RAMB36E2": 1.0, "RAMB18E1": 0.5, "RAMB18E2": 0.5, "DP16KD": 1.0,
    "SB_RAM40_4K": 1.0,
}  # fmt: skip
MULTIPLIER_CELLS = ("DSP48E1", "DSP48E2", "MULT18X18D", "SB_MAC16")
FLIP_FLOP_CELLS = re.compile(r"FD[RSCP]E(_1)?|TRELLIS_FF|SB_DFF\w*")
#: LUT sites of a cell that is logic and shares none: a CCU2C is two LUT4 and their carry.
LUT_CELLS = {"SB_LUT4": 1, "CCU2C": 2}
#: LUT sites of a cell that is distributed memory.
MEMORY_LUT_CELLS = {
    "RAM32M": 4, "RAM64M": 4, "RAM32M16": 8, "RAM64M8": 8, "RAM128X1D": 4, "RAM64X1D": 2,
    "RAM32X1D": 2, "RAM256X1D": 8, "SRL16E": 1, "SRLC32E": 1, "TRELLIS_DPR16X4": 2,
}  # fmt: skip

#: Which parameter sets the size of which memory. These must be in memory blocks.
MEMORY_PARAMETERS = {
    "activation_memory": "activation_depth",
    "wide_memory": "wide_depth",
    "weight_memory": "weight_depth",
    "lut_weight_memory": "lut_weight_depth",
    "operand_memory": "operand_depth",
    "parameter_memory": "parameter_depth",
    "norm_memory": "norm_depth",
}
#: Which parameter sets the size of which array.
ARRAY_PARAMETERS = {"gemm.dsp.array": "dsp_columns", "gemm.lut.array": "lut_columns"}
#: Families of which every multiplier block is two int8 multipliers of the array.
TWO_PER_BLOCK = ("xc7", "xcup")


@dataclass(frozen=True)
class Usage:
    """Cells of a design or module, its submodules included.

    ``luts`` are LUT sites: on Xilinx families two small LUTs share one (:func:`logic_cells`), so
    modules can have some more than the whole. Distributed memory counts in ``luts`` and
    ``memory_luts``.
    """

    luts: int
    flip_flops: int
    multipliers: int
    memory_blocks: float
    memory_luts: int
    cells: Mapping[str, int] = field(default_factory=dict, repr=False)


def logic_cells(cells: Mapping[str, int]) -> int:
    """Return Yosys' estimate of the LUT sites that logic takes.

    A LUT5 or LUT4 shares its site with a LUT1, a LUT4 or LUT3 with a LUT2, and two of the smallest
    share one. Only Xilinx families have LUTs of different sizes.
    """
    luts = {n: cells.get(f"LUT{n}", 0) for n in range(1, 7)}
    total = luts[6] + luts[5] + luts[4] + luts[3]
    for large, small in ((5, 1), (4, 1), (4, 2), (3, 1), (3, 2)):
        shared = min(luts[large], luts[small])
        luts[large] -= shared
        luts[small] -= shared
    total += (luts[2] + luts[1] + 1) // 2
    return total + sum(LUT_CELLS.get(cell, 0) * n for cell, n in cells.items())


def count(cells: Mapping[str, int], estimated_luts: int | None = None) -> Usage:
    """Return the usage of counted cells; ``estimated_luts`` replaces the count of logic LUTs."""
    memory_luts = sum(MEMORY_LUT_CELLS.get(cell, 0) * n for cell, n in cells.items())
    luts = logic_cells(cells) if estimated_luts is None else estimated_luts
    return Usage(
        luts=luts + memory_luts,
        flip_flops=sum(n for cell, n in cells.items() if FLIP_FLOP_CELLS.fullmatch(cell)),
        multipliers=sum(cells.get(cell, 0) for cell in MULTIPLIER_CELLS),
        memory_blocks=sum(MEMORY_CELLS.get(cell, 0) * n for cell, n in cells.items()),
        memory_luts=memory_luts,
        cells=dict(cells),
    )


@dataclass(frozen=True)
class Report:
    """Usage of the design and of its modules, against a part."""

    config: Config
    family: str
    part: Part
    total: Usage
    modules: Mapping[str, Usage]
    yosys: str

    def percent(self) -> dict[str, float]:
        """Share of the part that is used, by resource; infinite where the part has none."""
        used = asdict(self.total)
        return {
            name: 100 * used[name] / there if there else (0.0 if not used[name] else float("inf"))
            for name, there in self.part.capacity().items()
        }

    def over(self) -> list[str]:
        """Return a sentence for every resource that does not fit, with the way out."""
        used = asdict(self.total)
        return [
            f"{used[name]:,g} {name.replace('_', ' ')} of {there:,g} on {self.part.name}:"
            f" {used[name] - there:,g} too many; {self._remedy(name)}"
            for name, there in self.part.capacity().items()
            if used[name] > there
        ]

    def _remedy(self, resource: str) -> str:
        """Return what to lower, the largest user first."""
        if resource == "memory_blocks":
            users = {
                name: usage.memory_blocks
                for name, usage in self.modules.items()
                if usage.memory_blocks and name in MEMORY_PARAMETERS
            }
            if users:
                largest = max(users, key=users.get)
                return (
                    f"lower {MEMORY_PARAMETERS[largest]}"
                    f" (the {largest.replace('_', ' ')} has {users[largest]:,g} of them)"
                )
        arrays = {
            name: getattr(self.modules[name], resource)
            for name in ARRAY_PARAMETERS
            if name in self.modules
        }
        if arrays and max(arrays.values()):
            largest = max(arrays, key=arrays.get)
            return (
                f"lower {ARRAY_PARAMETERS[largest]} or lanes"
                f" ({largest} has {arrays[largest]:,} of them)"
            )
        parameters = "lanes or dsp_columns"
        if resource in ("luts", "flip_flops"):
            parameters = "lanes, dsp_columns or accumulator_bits"
        engines = {name: getattr(u, resource) for name, u in self.modules.items() if name}
        if not engines or not max(engines.values()):
            return f"lower {parameters}"
        largest = max(engines, key=lambda name: (engines[name], -name.count(".")))
        return f"lower {parameters} ({largest} has {engines[largest]:,g} of them)"

    def misplaced(self) -> list[str]:
        """Return a sentence for everything that synthesis did not put where it belongs.

        Memories belong in memory blocks, and on families that allow it two multipliers of the array
        in one block.
        """
        sentences = []
        for name, parameter in MEMORY_PARAMETERS.items():
            if not getattr(self.config, parameter):
                continue
            usage = self.modules.get(name, count({}))
            if not usage.memory_blocks or usage.memory_luts:
                where = "LUTs" if usage.memory_luts else "flip-flops"
                sentences.append(
                    f"the {name.replace('_', ' ')} is in {where}, not in memory blocks"
                )
        if self.family in TWO_PER_BLOCK and self.config.family in TWO_PER_BLOCK:
            wanted = -(-self.config.lanes // 2) * self.config.dsp_columns
            array = self.modules.get("gemm.dsp.array", count({})).multipliers
            if array != wanted:
                sentences.append(
                    f"the array has {array} {FAMILY_BLOCKS[self.family][0]} for"
                    f" {self.config.multipliers} multipliers, not {wanted}"
                )
        return sentences

    def to_json(self) -> dict:
        """Return everything as plain values."""
        return {
            "config": self.config.name,
            "config_hash": self.config.hash,
            "family": self.family,
            "part": self.part.name,
            "fits": not self.over(),
            "over": self.over(),
            "misplaced": self.misplaced(),
            "total": asdict(self.total),
            "capacity": self.part.capacity(),
            "percent": self.percent(),
            "modules": {name: asdict(usage) for name, usage in self.modules.items()},
            "yosys": self.yosys,
        }


def resources(config: Config, family: str, part: Part, *, progress: Progress = silent) -> Report:
    """Synthesise the accelerator of ``config`` for ``part`` and count; cached by content.

    Takes minutes for large configurations.

    Raises
    ------
    TwillcoreError
        If the family is unknown, or Yosys is missing or fails.
    """
    from twillcore.fpga.target import to_rtlil
    from twillcore.hw.accelerator import Accelerator

    if family not in SYNTHESIS:
        raise TwillcoreError(f"unknown family {family!r}; known: {', '.join(SYNTHESIS)}")
    progress(f"elaborating {config.name}")
    text = to_rtlil(Accelerator(config), "twillcore", family)
    total, modules = synthesise(text, "twillcore", family, progress)
    return Report(config, family, part, total, modules, f"Yosys {YOSYS.version}")


def synthesise(
    rtlil: str, top: str, family: str, progress: Progress = silent
) -> tuple[Usage, dict[str, Usage]]:
    """Return the usage of a design and of each module in it, by its dotted name; cached."""
    command = SYNTHESIS[family].format(top=top)
    folder = cache_folder() / "resources" / content_key(rtlil, command, YOSYS.version)
    summary = folder / "cells.json"
    if not summary.exists():
        folder.mkdir(parents=True, exist_ok=True)
        source, netlist, statistics = (
            folder / name for name in (f"{top}.il", "netlist.json", "stat.json")
        )
        source.write_text(rtlil)
        script = (
            f"read_rtlil {source.name}; {command}; autoname;"
            f" tee -q -o {statistics.name} stat -json {STAT[family]}; write_json {netlist.name}"
        )
        YOSYS.run(["-p", script], folder / "yosys.log", progress)
        data = cells_by_scope(json.loads(netlist.read_text())["modules"][top]["cells"])
        estimate = json.loads(statistics.read_text())["design"].get("estimated_num_lc")
        netlist.unlink()  # large, and never needed again
        part = summary.with_suffix(".part")
        part.write_text(json.dumps({"estimated_luts": estimate, "scopes": data}))
        part.replace(summary)
    data = json.loads(summary.read_text())
    return usages(data["scopes"], data["estimated_luts"])


def usages(
    scopes: Mapping[str, Mapping[str, int]], estimated_luts: int | str | None = None
) -> tuple[Usage, dict[str, Usage]]:
    """Return total and modules from the cells that belong to each scope itself."""
    sums: dict[str, Counter] = {name: Counter() for name in scopes}
    for name, cells in scopes.items():
        steps = name.split(".") if name else []
        for n in range(len(steps) + 1):
            sums.setdefault(".".join(steps[:n]), Counter()).update(cells)
    total = sums.pop("", Counter())
    estimate = None if estimated_luts is None else int(estimated_luts)
    return count(total, estimate), {name: count(cells) for name, cells in sorted(sums.items())}


def cells_by_scope(cells: Mapping[str, Mapping]) -> dict[str, dict[str, int]]:
    """Return the number of cells of each type by the module whose name theirs starts with."""
    scopes = {name for name, cell in cells.items() if cell["type"] == "$scopeinfo"}
    counts: dict[str, Counter] = {}
    for name, cell in cells.items():
        if cell["type"] != "$scopeinfo":
            counts.setdefault(_scope(name, scopes), Counter())[cell["type"]] += 1
    return {name: dict(counter) for name, counter in sorted(counts.items())}


def _scope(cell: str, scopes: set[str]) -> str:
    """Return the innermost of ``scopes`` that the dotted name of ``cell`` is in, or "" for none."""
    name = cell
    while "." in name:
        name = name.rpartition(".")[0]
        if name in scopes:
            return name
    return ""
