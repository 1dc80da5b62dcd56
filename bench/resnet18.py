"""ResNet-18 on the RTL of z7020: cycles, use of both cores, what was lost where."""

from vision import Variant, write_page

VARIANTS = (
    Variant("dense, 8 bits, DSP core alone", ""),
    Variant(
        "2:4 on the DSP core, 4 bits on the LUT core", "--sparsity 2:4 --lut-bits 4", 2_100_000
    ),
    Variant(
        "1:4 on the DSP core, 4 bits on the LUT core", "--sparsity 1:4 --lut-bits 4", 1_400_000
    ),
)


def main() -> None:
    """Measure and write the page."""
    write_page(
        "resnet18",
        "resnet18",
        "ResNet-18 on z7020",
        "Random weights, first layer dense at 8 bits on both cores. On the same chip at 100 MHz,"
        " published: N3H-Core about 35.7 ms, Mix&Match 47.1 ms, MSD 26.31 ms.",
        VARIANTS,
        main=1,
    )


if __name__ == "__main__":
    main()
