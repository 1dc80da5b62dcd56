"""A matrix product on the LUT core of z7020, by bits of its weights; and on both cores."""

from measure import causes, core_causes, table, twillcore, write

from twillcore.config import load_config

CONFIG, SHAPE, LATENCIES = "z7020", "128 768 768", (40,)
BITS = (8, 7, 6, 5, 4, 3, 2, 1)
PAIRS = (("dense", 8), ("dense", 4), ("2:4", 4), ("2:4", 2), ("1:4", 4), ("1:4", 1))


def run(options: str) -> dict:
    """Run a product on the RTL and on the cycle model, which must agree."""
    command = f"gemm {SHAPE} --config {CONFIG} {options} --engine"
    rtl, cycle = (twillcore(f"{command} {engine}") for engine in ("rtl", "cycle"))
    assert rtl["bit_exact"], command
    assert all(rtl[key] == cycle[key] for key in ("schedule", "busy", "stalls", "lut")), command
    return rtl


def lut_row(latency: int, bits: int, result: dict, one: float) -> tuple[object, ...]:
    """Return a line of the first table; ``one`` is the cycles of one bit."""
    config, lut, cycles = load_config(CONFIG), result["lut"], result["cycles"]
    useful = round(lut["bit_products"] / config.bit_products)
    return (
        latency,
        bits,
        f"{cycles:,}",
        f"{cycles / bits / one:.3f}",
        f"{lut['utilisation']:.3f}",
        f"{result['bytes_read']:,}",
        core_causes(lut, useful, cycles),
    )


def main() -> None:
    """Measure and write the page."""
    config = load_config(CONFIG)
    rows, pairs = [], []
    for latency in LATENCIES:
        memory = f"--memory-latency {latency}"
        results = {b: run(f"--core lut --weight-bits {b} {memory}") for b in BITS}
        one = results[4]["cycles"] / 4
        rows += [lut_row(latency, bits, result, one) for bits, result in results.items()]
        for sparsity, bits in PAIRS:
            alone = run(f"--sparsity {sparsity} {memory}")
            both = run(f"--sparsity {sparsity} --core both --weight-bits {bits} {memory}")
            pairs.append(
                (
                    latency,
                    sparsity,
                    bits,
                    both["lut_channels"],
                    f"{both['cycles']:,}",
                    f"{alone['cycles'] / both['cycles']:.2f}",
                    f"{both['utilisation']:.3f}",
                    f"{both['lut']['utilisation']:.3f}",
                    causes(both, config.multipliers),
                )
            )
    columns = (
        "memory latency", "bits", "cycles", "cycles per bit, to those at 4 bits", "use",
        "bytes read", "where its other cycles went",
    )  # fmt: skip
    pair_columns = (
        "memory latency", "DSP core", "bits on LUT core", "outputs on LUT core", "cycles",
        "speed-up over the DSP core alone", "use of DSP core", "of LUT core",
        "where the DSP core's other cycles went",
    )  # fmt: skip
    write(
        "lut_gemm",
        f"Matrix products on the LUT core of {CONFIG}",
        f"{SHAPE.replace(' ', ' x ')}, int8 activations, from memory to memory, on the RTL; every"
        " result equals the reference bit for bit, and the cycle model equals the RTL. Use is"
        " products with one bit of a weight / (cycles * those the core could make). Each line is"
        f" one command: `twillcore gemm {SHAPE} --config {CONFIG} --core lut --weight-bits B"
        " --memory-latency L`.",
        table(columns, rows),
        "On both cores, which work side by side; outputs are divided so that both finish together:"
        " `--core both --sparsity S --weight-bits B`.",
        table(pair_columns, pairs),
    )


if __name__ == "__main__":
    main()
