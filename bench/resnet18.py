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
    Variant(
        "the same with 2:4 where layer3 and layer4 have a stride of 2",
        "--policy bench/resnet18-1of4.toml",
        1_400_000,
    ),
)


def main() -> None:
    """Measure and write the page."""
    write_page(
        "resnet18",
        "resnet18",
        "ResNet-18 on z7020",
        "Random weights, first layer dense at 8 bits on both cores. On the same chip at 100 MHz,"
        " published: N3H-Core about 35.7 ms, Mix&Match 47.1 ms, MSD 26.31 ms. At 1:4 a layer of"
        " stride 2 reads activations in every cycle for the DSP core alone, and the LUT core"
        " starves; with 2:4 both work, in hardly more time.",
        VARIANTS,
        main=1,
    )


if __name__ == "__main__":
    main()
