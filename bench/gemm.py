"""Matrix products, memory to memory, on the RTL: cycles, utilisation, speed-up of sparsity."""

from measure import causes, table, twillcore, write

SHAPES = {
    "64 64 64": ("dense", "2:4"),
    "128 768 768": ("dense", "2:4", "1:4", "2:8", "1:8"),
    "128 768 3072": ("dense", "2:4"),
    "512 64 512": ("dense", "2:4"),
    "17 100 33": ("dense", "2:4"),
    "1 384 384": ("dense", "2:4"),
}
LATENCIES = (1, 40)


def main() -> None:
    """Measure every shape and write the page."""
    rows = []
    for shape, sparsities in SHAPES.items():
        for latency in LATENCIES:
            dense = None
            for sparsity in sparsities:
                command = f"gemm {shape} --sparsity {sparsity} --memory-latency {latency}"
                result = twillcore(command)
                assert result["bit_exact"], command
                dense = dense or result["cycles"]
                rows.append(
                    (
                        shape.replace(" ", " x "),
                        sparsity,
                        latency,
                        f"{result['cycles']:,}",
                        f"{result['utilisation']:.3f}",
                        f"{dense / result['cycles']:.2f}",
                        causes(result),
                    )
                )
    columns = (
        "M x K x N",
        "sparsity",
        "memory latency",
        "cycles",
        "utilisation",
        "speed-up",
        "where the GEMM core's other cycles went",
    )
    write(
        "gemm",
        "Matrix products on u256",
        "Int8, from memory to memory, through instructions, AXI and requantisation. Cycles are the"
        " RTL's, from the start command to the done flag; every result equals the reference bit for"
        " bit. Utilisation is useful multiplications / (cycles * 256 multipliers), speed-up is over"
        " the dense product of the same size. Causes: `padding` is work on rows, columns and inputs"
        " beyond the given sizes, `wait_X` the next instruction waited for engine X, `empty` none"
        " was there yet, `ending` the last tile drained. Each line is one command:"
        " `twillcore gemm M K N --sparsity S --memory-latency L`.",
        table(columns, rows),
    )


if __name__ == "__main__":
    main()
