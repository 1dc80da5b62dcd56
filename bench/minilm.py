"""The whole of MiniLM on the RTL: cycles, utilisation, speed-up, speed of the simulators."""

from measure import causes, table, twillcore, write

TOKENS = (32, 128)
SPARSITIES = ("dense", "2:4", "1:4", "1:8")  # 4:8 and 2:8 take the cycles of 2:4 and 1:4
TEXT = "Twill"  # what it says does not change the cycles


def main() -> None:
    """Measure every length and sparsity and write the page."""
    rows = []
    for tokens in TOKENS:
        dense = None
        for sparsity in SPARSITIES:
            options = f"--tokens {tokens} --sparsity {sparsity} --text {TEXT}"
            rtl = twillcore(f"run minilm {options} --engine rtl")
            cycle = twillcore(f"run minilm {options} --engine cycle")
            assert rtl["bit_exact"], options
            assert rtl["schedule"] == cycle["schedule"], options
            dense = dense or rtl["cycles"]
            rows.append(
                (
                    tokens,
                    sparsity,
                    f"{rtl['cycles']:,}",
                    f"{rtl['utilisation']:.3f}",
                    f"{dense / rtl['cycles']:.2f}",
                    causes(rtl),
                    f"{rtl['seconds']:.1f}",
                    f"{rtl['simulated_cycles_per_second'] / 1e6:.2f}",
                    f"{cycle['seconds']:.1f}",
                )
            )
    columns = (
        "tokens",
        "sparsity",
        "cycles",
        "utilisation",
        "speed-up",
        "where the GEMM core's other cycles went",
        "rtl, s",
        "rtl, Mcycle/s",
        "cycle, s",
    )
    write(
        "minilm",
        "all-MiniLM-L6-v2 on u256",
        "The whole encoder, from token embeddings to the last layer norm, on the RTL with a memory"
        " latency of 40 cycles; `cycle` gives the same start and end of every instruction."
        " Each line is two commands, rtl and cycle:"
        f" `twillcore run minilm --tokens T --sparsity S --text {TEXT} --engine E`.",
        table(columns, rows),
    )


if __name__ == "__main__":
    main()
