"""FPGA parts by name: what a part offers, in the units that synthesis counts.

Sources: the vendors' product tables (XC7Z020: Xilinx DS190; UltraScale+: DS891 and XMP104; ECP5:
Lattice FPGA-DS-02012; iCE40: FPGA-DS-02029 and FPGA-DS-02008).
"""

from dataclasses import dataclass

from twillcore.errors import TwillcoreError


@dataclass(frozen=True)
class Part:
    """One device: look-up tables, flip-flops, multipliers, memory blocks of its family's kind."""

    name: str
    family: str
    luts: int
    flip_flops: int
    multipliers: int
    memory_blocks: float

    def capacity(self) -> dict[str, float]:
        """Return what is there, by the names of :class:`twillcore.fpga.resources.Usage`."""
        return {
            "luts": self.luts,
            "flip_flops": self.flip_flops,
            "multipliers": self.multipliers,
            "memory_blocks": self.memory_blocks,
        }


#: What a memory block and a multiplier are, per family.
FAMILY_BLOCKS = {
    "xc7": ("DSP48E1", "RAMB36"),
    "xcup": ("DSP48E2", "RAMB36"),
    "ecp5": ("MULT18X18D", "DP16KD"),
    "ice40": ("SB_MAC16", "SB_RAM40_4K"),
}

PARTS = {
    part.name: part
    for part in (
        Part("xc7z010", "xc7", 17_600, 35_200, 80, 60),
        Part("xc7z020", "xc7", 53_200, 106_400, 220, 140),
        Part("xc7z045", "xc7", 218_600, 437_200, 900, 545),
        Part("xc7a100t", "xc7", 63_400, 126_800, 240, 135),
        Part("xczu3eg", "xcup", 70_560, 141_120, 360, 216),
        Part("xczu7ev", "xcup", 230_400, 460_800, 1_728, 312),
        Part("xczu9eg", "xcup", 274_080, 548_160, 2_520, 912),
        Part("lfe5u-25f", "ecp5", 24_288, 24_288, 28, 56),
        Part("lfe5u-45f", "ecp5", 43_848, 43_848, 72, 108),
        Part("lfe5u-85f", "ecp5", 83_640, 83_640, 156, 208),
        Part("up5k", "ice40", 5_280, 5_280, 8, 30),
        Part("hx8k", "ice40", 7_680, 7_680, 0, 32),
    )
}
DEFAULT_PART = {"xc7": "xc7z020", "xcup": "xczu7ev", "ecp5": "lfe5u-85f", "ice40": "up5k"}


def find_part(name: str | None, family: str) -> Part:
    """Return a part by name, or the family's usual one.

    Raises
    ------
    TwillcoreError
        If the part or family is unknown, or they do not belong together.
    """
    if family not in FAMILY_BLOCKS:
        raise TwillcoreError(f"unknown family {family!r}; known: {', '.join(FAMILY_BLOCKS)}")
    part = PARTS.get((name or DEFAULT_PART[family]).lower())
    if part is None:
        known = ", ".join(p.name for p in PARTS.values() if p.family == family)
        raise TwillcoreError(f"unknown part {name!r}; known of family {family}: {known}")
    if part.family != family:
        raise TwillcoreError(f"part {part.name} is of family {part.family}, not {family}")
    return part
