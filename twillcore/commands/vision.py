"""Networks for images in ``twillcore run``: compiled and cached, compared with PyTorch."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor, nn

from twillcore.cache import cached_file, content_key, source_key
from twillcore.commands.execution import execute, reference, same_outputs
from twillcore.commands.files import write_array
from twillcore.commands.network import cosines
from twillcore.commands.report import RunReport
from twillcore.commands.terminal import Log, counting, working
from twillcore.config import Config
from twillcore.dram import Dram
from twillcore.errors import TwillcoreError
from twillcore.flow import Program, compile, load
from twillcore.models.policy import Policy, default_policy
from twillcore.models.vision import VISION_NETWORKS, VisionNetwork, load_vision_network

MOST_ROWS = 20  # images that are listed one by one


@dataclass(frozen=True)
class Inputs:
    """Images as the network takes them, their names, and their classes where these are known."""

    images: Sequence[Tensor]
    names: Sequence[str]
    labels: Sequence[int] | None = None


def choose_inputs(
    network: VisionNetwork, files: Sequence[Path] | None, seed: int | None, count: int | None
) -> Inputs:
    """Return the files, or ``count`` images by seed; raises :class:`TwillcoreError` as they do."""
    if files:
        if seed is not None or count is not None:
            raise TwillcoreError("--seed and --count are for images without --image")
        return Inputs([network.read(file) for file in files], [str(file) for file in files])
    seeds = range(seed or 0, (seed or 0) + (count or 1))
    if network.labelled is None:
        return Inputs([network.random(one) for one in seeds], [f"seed {one}" for one in seeds])
    images, labels = network.labelled()
    if seeds[-1] >= len(images):
        raise TwillcoreError(f"there are {len(images)} test images, not {seeds[-1] + 1}")
    return Inputs(
        [images[one][None] for one in seeds],
        [f"test image {one}" for one in seeds],
        labels[list(seeds)].tolist(),
    )


def choose_policy(
    name: str,
    module: nn.Module,
    config: Config,
    file: Path | None,
    sparsity: str,
    lut_bits: int | None,
) -> Policy:
    """Return the policy of ``file``, or the default one of a sparsity and bits; it is checked."""
    if file is not None:
        if sparsity != "dense" or lut_bits is not None:
            raise TwillcoreError("--sparsity and --lut-bits are for runs without --policy")
        policy = Policy.load(file)
    else:
        if lut_bits is not None and not config.lut_columns:
            raise TwillcoreError(f"--lut-bits: configuration {config.name!r} has no LUT core")
        policy = default_policy(module, sparsity, lut_bits, name=name)
    policy.check(module, config)
    return policy


def compiled(name: str, module: nn.Module, policy: Policy, config: Config) -> Program:
    """Return ``module`` compiled for one image, from the cache if possible."""

    def make(path: Path) -> None:
        samples = VISION_NETWORKS[name].calibration()
        with working(f"calibrating and compiling {name} for {config.name}"):
            program = compile(module, samples[0], config=config, calibration=samples, policy=policy)
            program.save(path)

    text = policy.to_toml()
    key = content_key(
        source_key("compiler", "models"), state_hash(module), config.to_toml(), text
    )  # fmt: skip
    path = cached_file(f"{name}-{config.hash}-{content_key(text)[:8]}", key, ".twill", make)
    with working("reading the program"):
        return load(path)


def state_hash(module: nn.Module) -> bytes:
    """Return a hash of all weights."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.digest()


def run_images(
    name: str,
    config: Config,
    *,
    files: Sequence[Path] | None,
    seed: int | None,
    count: int | None,
    lut_bits: int | None,
    policy_file: Path | None,
    save_policy: Path | None,
    weights: Path | None,
    sparsity: str,
    engine: str,
    dram: Dram,
    waveform: Mapping[str, object],
    out: Path | None,
    save: Path | None,
    as_json: bool,
) -> None:
    """Run every image, compare the logits with PyTorch's, and show it all."""
    inputs = choose_inputs(VISION_NETWORKS[name], files, seed, count)
    with counting(f"weights of {name}, epoch") as progress:
        module = load_vision_network(name, weights, progress)
    policy = choose_policy(name, module, config, policy_file, sparsity, lut_bits)
    if save_policy is not None:
        policy.save(save_policy)
    program = compiled(name, module, policy, config)
    if save is not None:
        program.save(save)
    report, log, logits = RunReport(program.image), Log(), []
    for number, image in enumerate(inputs.images, 1):
        what = f"{engine}: image {number} of {len(inputs.images)}"
        log.say(what)
        integers, passed = program.prepare(image)
        expected = reference(program.graph, integers)
        if engine == "reference":
            result = expected
            report.add(result, None)
        else:
            result = execute(program.image, integers, engine, dram, what, **waveform)
            report.add(result, same_outputs(result, expected))
        logits.append(program.finish(result, passed).outputs[0].numpy())
    found = np.concatenate(logits)
    with working("computing fp32 with PyTorch"), torch.no_grad():
        fp32 = np.concatenate([module(image).numpy() for image in inputs.images])
        policy.enforce(module)
        pruned = np.concatenate([module(image).numpy() for image in inputs.images])
    if out is not None:
        write_array(out, found)
    figures = compare(found, fp32, pruned, inputs.labels)
    figures |= {"network": name, "policy": str(policy_file or "default"), "images": inputs.names}
    if policy_file is None:
        figures |= {"sparsity": sparsity, "lut_bits": lut_bits}
    report.show(as_json, *_tables(inputs, figures), **figures)


def compare(
    found: NDArray, fp32: NDArray, pruned: NDArray, labels: Sequence[int] | None = None
) -> dict[str, object]:
    """Return classes and cosines of logits (n, classes), and the accuracy if labels are known.

    ``pruned`` are fp32, too, with the weights that the policy leaves.
    """
    figures: dict[str, object] = {
        "class": found.argmax(-1).tolist(),
        "class_fp32": fp32.argmax(-1).tolist(),
        "cosine": cosines(found, fp32),
        "cosine_pruned_fp32": cosines(pruned, fp32),
        "cosine_same_weights": cosines(found, pruned),
    }
    if labels is not None:
        figures["label"] = list(labels)
        for name, logits in (("", found), ("_fp32", fp32), ("_pruned_fp32", pruned)):
            figures[f"accuracy{name}"] = float((logits.argmax(-1) == labels).mean())
    return figures


def _tables(inputs: Inputs, figures: Mapping) -> list[Table]:
    tables = []
    if len(inputs.images) <= MOST_ROWS:
        headings = {"class": "class", "class_fp32": "in fp32", "label": "label"}
        columns = {name: heading for name, heading in headings.items() if name in figures}
        table = Table("image", title="Classes and cosine of the logits", title_justify="left")
        for heading in (*columns.values(), "to fp32", "to fp32, pruned"):
            table.add_column(heading, justify="right")
        values = [figures[name] for name in (*columns, "cosine", "cosine_same_weights")]
        for image, *classes, cosine, same_weights in zip(inputs.names, *values, strict=True):
            table.add_row(image, *map(str, classes), f"{cosine:.4f}", f"{same_weights:.4f}")
        tables.append(table)
    table = Table.grid(padding=(0, 2))
    same = sum(a == b for a, b in zip(figures["class"], figures["class_fp32"], strict=True))
    table.add_row("classes as in fp32", f"{same} of {len(inputs.images)}")
    means = (np.mean(figures[name]) for name in ("cosine", "cosine_same_weights"))
    table.add_row(
        "mean cosine", "to fp32 {:.4f}, to fp32 with pruned weights {:.4f}".format(*means)
    )
    if "accuracy" in figures:
        table.add_row(
            "accuracy",
            f"[bold]{figures['accuracy']:.2%}[/], fp32 {figures['accuracy_fp32']:.2%},"
            f" with pruned weights {figures['accuracy_pruned_fp32']:.2%}",
        )
    return [*tables, table]
