"""Which columns for z7020: cycles of ResNet-18 and MobileNet-V2 by the columns of both cores.

The area is that of the preset as measured, and its two arrays' by the column:
docs/results/fpga_area.md.
"""

import tempfile
from pathlib import Path

from measure import table, twillcore, write

from twillcore.config import load_config

CHIP = {"LUT": 53_200, "FF": 106_400, "DSP48E1": 220}
#: Of the preset with 24 and 16 columns, and of a column of the DSP core and of the LUT core.
PRESET = {"LUT": 49_062, "FF": 88_323, "DSP48E1": 211}
DSP_COLUMN = {"LUT": 11_189 / 24, "FF": 28_112 / 24, "DSP48E1": 7}
LUT_COLUMN = {"LUT": 16_832 / 16, "FF": 31_817 / 16, "DSP48E1": 0}
COLUMNS = ((16, 24), (16, 32), (24, 8), (24, 16), (24, 24), (32, 8))
NETWORKS = {
    "ResNet-18, 2:4": "resnet18 --sparsity 2:4",
    "ResNet-18, 1:4": "resnet18 --sparsity 1:4",
    "MobileNet-V2": "mobilenetv2",
}


def area(dsp: int, lut: int) -> dict[str, int]:
    """Return what a machine with so many columns needs."""
    base = load_config("z7020")
    return {
        key: round(
            PRESET[key]
            + (dsp - base.dsp_columns) * DSP_COLUMN[key]
            + (lut - base.lut_columns) * LUT_COLUMN[key]
        )
        for key in CHIP
    }


def cycles(dsp: int, lut: int, options: str) -> int:
    """Return the cycles of a network by the cycle model."""
    depth = load_config("z7020").lut_weight_depth if lut else 0
    config = load_config("z7020").replace(
        name=f"z7020-{dsp}-{lut}", dsp_columns=dsp, lut_columns=lut, lut_weight_depth=depth
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text(config.to_toml())
        bits = " --lut-bits 4" if lut else ""
        return twillcore(f"run {options}{bits} --config {path} --engine cycle")["cycles"]


def main() -> None:
    """Measure and write the page."""
    rows = []
    for dsp, lut in COLUMNS:
        need = area(dsp, lut)
        over = [key for key in CHIP if need[key] > CHIP[key]]
        rows.append(
            (
                f"{dsp} + {lut}",
                *(f"{need[key]:,}" for key in CHIP),
                f"no: {', '.join(over)}" if over else "yes",
                *(f"{cycles(dsp, lut, options):,}" for options in NETWORKS.values()),
            )
        )
    write(
        "columns",
        "Columns of z7020",
        "14 lanes, 128-bit AXI, memory latency 40, weights of 8 bits on the DSP core and of 4 on"
        " the LUT core; cycles by the cycle model. The area is not measured but for 24 + 16: it is"
        " that of the preset with the arrays' parts of it by the column"
        " (`docs/results/fpga_area.md`).",
        table(("columns, DSP + LUT core", *CHIP, "fits XC7Z020", *NETWORKS), rows),
    )


if __name__ == "__main__":
    main()
