"""What the measurements of convolutional networks share: runs, tables of variants and layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from measure import causes, core_causes, table, twillcore, write
from torch import nn

from twillcore.config import Config, load_config
from twillcore.models.layout import sparse_layers
from twillcore.models.vision import VISION_NETWORKS

CONFIG, LATENCY = "z7020", 40
WIDE = 128  # channels from which on a layer should keep the cores busy


@dataclass(frozen=True)
class Variant:
    """A line of the first table: ``options`` of ``twillcore run``, cycles to reach if any."""

    what: str
    options: str
    goal: int | None = None


def measure(network: str, variant: Variant) -> dict:
    """Run on the RTL and return its figures; the cycle model must agree in all of them."""
    command = (
        f"run {network} --config {CONFIG} --memory-latency {LATENCY} {variant.options} --engine"
    )
    rtl, cycle = (twillcore(f"{command} {engine}") for engine in ("rtl", "cycle"))
    assert rtl["bit_exact"], command
    for key in (
        "cycles",
        "schedule",
        "busy",
        "stalls",
        "lut",
        "layers",
        "bytes_read",
        "bytes_written",
    ):
        assert rtl.get(key) == cycle.get(key), (command, key)
    return rtl


def variants_table(
    network: str, variants: Sequence[Variant], results: Sequence[Mapping], config: Config
) -> str:
    """Return a line per variant: cycles and time, use of the cores, traffic."""
    rows = []
    for variant, result in zip(variants, results, strict=True):
        cycles = result["cycles"]
        dsp, lut = wide_use(result, config, wide_layers(network, nn.Conv2d))
        dsp_all, lut_all = wide_use(result, config, wide_layers(network, nn.Module))
        rows.append(
            (
                variant.what,
                f"{cycles:,}",
                f"{cycles / config.clock_mhz / 1000:.2f}",
                f"<= {variant.goal:,}" if variant.goal else "",
                f"{results[0]['cycles'] / cycles:.2f}",
                f"{result['utilisation']:.3f}",
                f"{result['lut']['utilisation']:.3f}" if "lut" in result else "",
                f"{dsp:.3f} ({dsp_all:.3f})",
                f"{lut:.3f} ({lut_all:.3f})",
                f"{result['bytes_read'] / 1e6:.2f}",
                f"{result['bytes_written'] / 1e6:.2f}",
                f"{min(result['cosine']):.4f}",
                f"{result['seconds']:.0f}",
                f"{result['simulated_cycles_per_second'] / 1e6:.3f}",
            )
        )
    columns = (
        "what",
        "cycles",
        f"ms at {config.clock_mhz:g} MHz",
        "to reach",
        "speed-up",
        "use of DSP core",
        "of LUT core",
        f"DSP, convolutions >= {WIDE} (and linear layer)",
        f"LUT, convolutions >= {WIDE} (and linear layer)",
        "MB read",
        "MB written",
        "cosine to fp32",
        "rtl, s",
        "rtl, Mcycle/s",
    )
    return table(columns, rows)


def wide_layers(network: str, kind: type[nn.Module]) -> list[str]:
    """Return the layers of a kind with at least :data:`WIDE` inputs (of a group) and outputs."""
    with torch.device("meta"):
        layers = sparse_layers(VISION_NETWORKS[network].build())
    return [
        name
        for name, layer in layers.items()
        if isinstance(layer, kind) and min(layer.weight.shape[:2]) >= WIDE
    ]


def wide_use(result: Mapping, config: Config, wide: Sequence[str]) -> tuple[float, float]:
    """Return the use of the DSP and of the LUT core over the cycles of the layers ``wide``."""
    layers = [layer for layer in result["layers"] if layer["name"] in wide]
    cycles = max(sum(layer["cycles"] for layer in layers), 1)
    useful = sum(layer["useful_macs"] for layer in layers)
    work = sum(layer.get("lut_work", 0) for layer in layers)
    lut = work / (cycles * config.bit_products) if config.bit_products else 0.0
    return useful / (cycles * config.multipliers), lut


def layers_table(result: Mapping) -> str:
    """Return a line per layer: cycles, use of the cores, why the DSP core issued no beat."""
    rows = []
    for layer in result["layers"]:
        if not layer["cycles"]:
            continue
        lost = sorted(layer["lost"].items(), key=lambda item: -item[1])
        reasons = ", ".join(f"{name} {count:,}" for name, count in lost if count)
        share = layer["lut_macs"] / layer["macs"] if layer.get("lut_macs") else 0
        rows.append(
            (
                f"`{layer['name']}`",
                f"{layer['cycles']:,}",
                f"{layer['utilisation']:.3f}" if layer["utilisation"] else "",
                f"{layer['lut_utilisation']:.3f}" if share else "",
                f"{share:.0%}" if share else "",
                f"{layer['busy']:,}",
                reasons,
                f"{layer['bytes']:,}",
            )
        )
    columns = (
        "layer", "cycles", "use of DSP core", "of LUT core", "MACs on LUT core", "DSP beats",
        "cycles without a DSP beat", "DRAM bytes",
    )  # fmt: skip
    return table(columns, rows)


def lost_table(variants: Sequence[Variant], results: Sequence[Mapping], config: Config) -> str:
    """Return where each core's cycles went that were no useful work."""
    rows = []
    for variant, result in zip(variants, results, strict=True):
        rows.append((variant.what, "DSP", causes(result, config.multipliers)))
        if "lut" in result and result["lut"]["macs"]:
            lut = result["lut"]
            useful = round(lut["bit_products"] / config.bit_products)
            rows.append((variant.what, "LUT", core_causes(lut, useful, result["cycles"])))
    return table(("what", "core", "where its other cycles went"), rows)


def write_page(
    page: str, network: str, title: str, introduction: str, variants: Sequence[Variant], main: int
) -> None:
    """Measure every variant and write the page; layers are listed of variant number ``main``."""
    config = load_config(CONFIG)
    results = [measure(network, variant) for variant in variants]
    write(
        page,
        title,
        introduction,
        f"Configuration `{CONFIG}`: {config.lanes} lanes, {config.dsp_columns} columns of the DSP"
        f" core, {config.lut_columns} of the LUT core, {config.axi_data_bits}-bit AXI; memory"
        f" latency {LATENCY} cycles. Cycles are the RTL's, for one image of 224 x 224, from the"
        " start command to the done flag; every result equals the reference bit for bit, and the"
        " cycle model equals the RTL in every figure and in the start and end of every"
        " instruction. Use of the DSP core is useful multiplications"
        " (kept weights, real sizes) / (cycles * multipliers); use of the LUT core is products with"
        " one bit of a weight / (cycles * those it could make); both also over the cycles of those"
        f" convolutions alone that have at least {WIDE} inputs and outputs, and (in parentheses)"
        " with the linear layer, which waits for its weights. Each line is two commands,"
        f" rtl and cycle: `twillcore run {network} --config {CONFIG} OPTIONS --engine E`, with"
        " options " + ", ".join(f"`{v.options or '(none)'}`" for v in variants) + ".",
        variants_table(network, variants, results, config),
        "## Where cycles were lost",
        "`padding` is work on rows, columns and inputs beyond the real sizes, `blocked` a wait for"
        " the drain (LUT core: or for a word of activations), `wait_X` the next instruction waited"
        " for engine X, `empty` none was there yet, `ending` the last tile drained.",
        lost_table(variants, results, config),
        f"## Layers: {variants[main].what}",
        "A cycle belongs to the layer that the DSP core works on; if it does not, to that of the"
        " first of LUT, VECTOR, MOVE, LOAD, STORE that does.",
        layers_table(results[main]),
    )
