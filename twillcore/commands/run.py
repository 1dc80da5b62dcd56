"""``twillcore run``: a known network; text in, embeddings out, or images in, classes out."""

from pathlib import Path
from typing import Annotated

import typer

from twillcore.commands.options import (
    Engine,
    EngineName,
    Json,
    MemoryBeatCycles,
    MemoryLatency,
    Sparsity,
    Vcd,
    VcdWindow,
    waveform,
)

DEFAULT_TEXT = "A twill is woven over N threads and under M."
EXAMPLES = (
    "twillcore run minilm --text 'Hello world'",
    "twillcore run minilm --text 'A cat sat.' --text 'A dog ran.' --engine cycle --out e.npy",
    "twillcore run minilm --sparsity 2:4 --tokens 128 --json",
    "twillcore run minilm --engine cycle --save minilm.twill",
    "twillcore run minilm --vcd run.vcd --vcd-window 100000:101000",
    "twillcore run digits-cnn --count 450 --engine functional",
    "twillcore run resnet18 --image cat.jpg --sparsity 2:4 --lut-bits 4",
    "twillcore run resnet18 --sparsity 2:4 --lut-bits 4 --save-policy mine.toml --engine cycle",
    "twillcore run mobilenetv2 --policy mine.toml --engine cycle --json",
)
TEXT_CONFIG, IMAGE_CONFIG = "u256", "z7020"


def command(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK",
            help="minilm: all-MiniLM-L6-v2; resnet18, mobilenetv2: random weights; digits-cnn.",
        ),
    ],
    text: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="What to embed; may be given several times."),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="PNG or JPEG; may be given several times."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Of a random image; of digits-cnn: which test digit. Default: 0."),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="Images, by this seed and those that follow. Default: 1."),
    ] = None,
    sparsity: Sparsity = "dense",
    lut_bits: Annotated[
        int | None,
        typer.Option(
            metavar="1..8", help="Bits of weights on the LUT core; not given: it has no work."
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="How each layer is compressed, instead of --sparsity, --lut-bits."
        ),
    ] = None,
    save_policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the policy in use, to edit it.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE.pt", help="A state dict for the network: torchvision's do."),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help=f"Preset, or a TOML file. Default: {TEXT_CONFIG}, for images {IMAGE_CONFIG}.",
        ),
    ] = None,
    engine: Engine = EngineName.rtl,
    tokens: Annotated[
        int | None,
        typer.Option(help="Length that texts are padded or cut to; default: as the longest needs."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npy", help="Write embeddings or logits, a row per input."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="PROGRAM", help="Keep the program, for inspect, disasm and profile."),
    ] = None,
    memory_latency: MemoryLatency = 40,
    memory_beat_cycles: MemoryBeatCycles = 1,
    vcd: Vcd = None,
    vcd_window: VcdWindow = None,
    as_json: Json = False,
) -> None:
    """Run sentences or images through a network on the accelerator and compare with PyTorch.

    Weights are pruned to N:M in one shot (minilm: by reconstruction on calibration sentences),
    quantised and compiled; both are cached. All inputs run the same program, one after the other.
    """
    from twillcore.commands.terminal import working
    from twillcore.config import load_config
    from twillcore.dram import Dram
    from twillcore.errors import TwillcoreError

    waveform_options = waveform(engine, vcd, vcd_window)
    dram = Dram(latency=memory_latency, beat_cycles=memory_beat_cycles)
    with working("starting PyTorch"):
        from twillcore.commands.network import run_text
        from twillcore.commands.vision import run_images
        from twillcore.models.vision import VISION_NETWORKS
        from twillcore.models.zoo import NETWORKS

    for_text = {"--text": text, "--tokens": tokens}
    for_images = {
        "--image": image, "--seed": seed, "--count": count, "--lut-bits": lut_bits,
        "--policy": policy, "--save-policy": save_policy, "--weights": weights,
    }  # fmt: skip
    if network not in {**NETWORKS, **VISION_NETWORKS}:
        raise TwillcoreError(
            f"no network {network!r}: there is {', '.join((*NETWORKS, *VISION_NETWORKS))}"
        )
    other = for_images if network in NETWORKS else for_text
    if wrong := [name for name, value in other.items() if value is not None]:
        kind = "text" if network in NETWORKS else "images"
        raise TwillcoreError(f"{network} takes {kind}, and not {', '.join(wrong)}")
    common = {
        "sparsity": sparsity, "engine": engine, "dram": dram, "waveform": waveform_options,
        "out": out, "save": save, "as_json": as_json,
    }  # fmt: skip
    if network in NETWORKS:
        chosen = load_config(config or TEXT_CONFIG)
        run_text(network, chosen, texts=text or [DEFAULT_TEXT], tokens=tokens, **common)
    else:
        run_images(
            network, load_config(config or IMAGE_CONFIG), files=image, seed=seed, count=count,
            lut_bits=lut_bits, policy_file=policy, save_policy=save_policy, weights=weights,
            **common,
        )  # fmt: skip
