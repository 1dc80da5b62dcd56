"""MobileNet-V2 on the RTL of z7020: cycles, use of both cores, what was lost where."""

from vision import Variant, write_page

VARIANTS = (
    Variant("dense, 8 bits, DSP core alone", ""),
    Variant("dense on the DSP core, 4 bits on the LUT core", "--lut-bits 4", 900_000),
    Variant("2:4 on the DSP core, 4 bits on the LUT core", "--sparsity 2:4 --lut-bits 4"),
)


def main() -> None:
    """Measure and write the page."""
    write_page(
        "mobilenet_v2",
        "mobilenetv2",
        "MobileNet-V2 on z7020",
        "Random weights, first layer dense at 8 bits on both cores, depthwise layers on the DSP"
        " core. On the same chip at 100 MHz, published: MSD 16.4 ms.",
        VARIANTS,
        main=1,
    )


if __name__ == "__main__":
    main()
