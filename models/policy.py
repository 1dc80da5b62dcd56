"""A policy: how each layer is compressed, as a file that people read and edit.

model = "minilm"

[layers]
"layer1.0.conv1" = { sparsity = "2:4", bits = 8, lut_share = 0.5, lut_bits = 4, rank = 0 }

A layer's outputs are divided between the DSP core, whose weights have the sparsity
and ``bits``, and the LUT core, whose weights are whole and have ``lut_bits``.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from twillcore.config import Config
from twillcore.errors import TwillcoreError
from twillcore.models.layout import as_rows, from_rows, is_depthwise, sparse_layers
from twillcore.models.nm import project
from twillcore.models.pattern import Pattern
from twillcore.models.qat import on_grid, quantise_rows

BITS = range(2, 9)
LUT_BITS = range(1, 9)


@dataclass(frozen=True)
class LayerPolicy:
    """How one layer is compressed.

    Attributes
    ----------
    sparsity : "dense" or N:M, of the weights on the DSP core
    bits : of the weights on the DSP core, 2..8
    lut_share : 0..1, the share of the output channels for the LUT core; None (in a file: left out):
        what makes both cores finish together, which the compiler knows; 0 without a LUT core
    lut_bits : of the weights on the LUT core, 1..8
    rank : of two factors that replace the weight; 0 keeps it whole
    """

    sparsity: str = "dense"
    bits: int = 8
    lut_share: float | None = None
    lut_bits: int = 4
    rank: int = 0

    @property
    def pattern(self) -> Pattern | None:
        """The sparsity as a pattern; None if dense."""
        return Pattern.parse(self.sparsity)

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        if not isinstance(self.sparsity, str):
            yield f"sparsity must be 'dense' or N:M such as 2:4, not {self.sparsity!r}"
        else:
            try:
                _ = self.pattern
            except TwillcoreError as error:
                yield str(error)
        if type(self.bits) is not int or self.bits not in BITS:
            yield f"bits must be {BITS[0]}..{BITS[-1]}, not {self.bits!r}"
        if self.lut_share is not None and (
            type(self.lut_share) not in (int, float) or not 0 <= self.lut_share <= 1
        ):
            yield f"lut_share must be 0..1, not {self.lut_share!r}"
        if type(self.lut_bits) is not int or self.lut_bits not in LUT_BITS:
            yield f"lut_bits must be {LUT_BITS[0]}..{LUT_BITS[-1]}, not {self.lut_bits!r}"
        if type(self.rank) is not int or self.rank < 0:
            yield f"rank must be 0 (whole) or positive, not {self.rank!r}"


@dataclass(frozen=True)
class Policy:
    """How each layer of ``model`` is compressed; layers that are not named stay as they are."""

    model: str
    layers: dict[str, LayerPolicy] = field(default_factory=dict)

    def ranks(self) -> dict[str, int]:
        """Return the ranks of the layers that are two factors."""
        return {name: layer.rank for name, layer in self.layers.items() if layer.rank}

    def patterns(self) -> dict[str, Pattern]:
        """Return the patterns of the sparse layers."""
        found = {name: layer.pattern for name, layer in self.layers.items()}
        return {name: pattern for name, pattern in found.items() if pattern is not None}

    def to_toml(self) -> str:
        """Return the policy as TOML, one aligned line per layer."""
        lines = [
            "# Twillcore compression policy.",
            "# On the DSP core: sparsity N:M or dense, weight bits 2..8.",
            "# On the LUT core: share of outputs 0..1 (left out: the compiler chooses), bits 1..8.",
            "# Rank of two factors in place of the weight (0: one whole weight).",
            f"model = {json.dumps(self.model)}",
            "",
            "[layers]",
        ]
        width = max((len(json.dumps(name)) for name in self.layers), default=0)
        for name, layer in self.layers.items():
            items = ((key, v) for key, v in asdict(layer).items() if v is not None)
            values = ", ".join(f"{key} = {json.dumps(v)}" for key, v in items)
            lines.append(f"{json.dumps(name):{width}} = {{ {values} }}")
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str, source: str = "policy") -> "Policy":
        """Read what :meth:`to_toml` wrote, or a person.

        Raises
        ------
        TwillcoreError
            With every problem in one message.
        """
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise TwillcoreError(f"{source}: not TOML: {error}") from None
        problems = [f"unknown entry {key!r}" for key in values if key not in ("model", "layers")]
        model, entries = values.get("model"), values.get("layers", {})
        if not isinstance(model, str):
            problems.append(f"model must be a name, not {model!r}")
        if not isinstance(entries, dict):
            raise TwillcoreError(f"{source}: layers must be a table, not {entries!r}")
        layers = {}
        known = LayerPolicy.__dataclass_fields__
        for name, entry in entries.items():
            if not isinstance(entry, dict):
                problems.append(f"{name}: must be a table, not {entry!r} (quote names with dots)")
                continue
            if unknown := [key for key in entry if key not in known]:
                problems.append(
                    f"{name}: unknown {', '.join(map(repr, unknown))} (quote names with dots)"
                )
            layer = LayerPolicy(**{key: v for key, v in entry.items() if key in known})
            problems += [f"{name}: {problem}" for problem in layer.problems()]
            layers[name] = layer
        if problems:
            raise TwillcoreError(f"{source}: " + "; ".join(problems))
        return cls(model, layers)

    def save(self, path: Path) -> None:
        """Write the file."""
        path.write_text(self.to_toml(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Policy":
        """Read a file; raises :class:`TwillcoreError` if it cannot be read or is wrong."""
        try:
            return cls.from_toml(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise TwillcoreError(f"{path}: cannot be read: {error}") from None

    def check(self, module: nn.Module, config: Config) -> None:
        """Raise unless the policy is for ``module`` and the chip can hold every pattern.

        Raises
        ------
        TwillcoreError
            With every problem in one message.
        """
        layers = sparse_layers(module)
        problems = []
        for name, layer in self.layers.items():
            problems += [f"{name}: {problem}" for problem in layer.problems()]
            if layer.rank and (layer.pattern is not None or layer.bits < 8 or layer.lut_share):
                problems.append(
                    f"{name}: factors of rank {layer.rank} are dense, of 8 bits and on the DSP core"
                )
            if _is_factorised(name, layer, layers):
                continue
            if name not in layers:
                problems.append(f"{name}: the network has no such layer")
                continue
            smaller = min(as_rows(layers[name].weight).shape)
            if layer.rank and not isinstance(layers[name], nn.Linear):
                problems.append(f"{name}: rank must be 0, not {layer.rank}: no linear layer")
            elif layer.rank >= smaller:
                problems.append(f"{name}: rank must be below {smaller}, not {layer.rank}")
            if is_depthwise(layers[name]) and layer.lut_share:
                problems.append(
                    f"{name}: lut_share must be 0 or left out, not {layer.lut_share}: depthwise"
                    " convolution runs on the DSP core"
                )
            elif layer.lut_share and not config.lut_columns:
                problems.append(
                    f"{name}: lut_share must be 0 or left out, not {layer.lut_share}:"
                    f" configuration {config.name!r} has no LUT core"
                )
            try:
                if layer.pattern is not None:
                    layer.pattern.beats(config)
            except TwillcoreError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise TwillcoreError(f"policy for {self.model!r}: " + "; ".join(problems))

    @torch.no_grad()
    def enforce(self, module: nn.Module) -> None:
        """Bring the weights of ``module`` in line, in place: pattern by magnitude, then bits.

        Weights that have both already do not change. Ranks are for
        :func:`twillcore.models.low_rank.factorise`; layers that are two factors already stay.
        """
        layers = sparse_layers(module)
        for name, layer in self.layers.items():
            if (layer.pattern is None and layer.bits == 8) or _is_factorised(name, layer, layers):
                continue
            weight = layers[name].weight
            rows = as_rows(weight)
            if (pattern := layer.pattern) is not None:
                rows = project(rows, pattern)
            if layer.bits < 8:
                outputs = rows.reshape(len(weight), -1)
                if not on_grid(outputs, layer.bits):
                    rows = quantise_rows(outputs, layer.bits).reshape(rows.shape)
            weight.copy_(from_rows(rows, weight))


def _is_factorised(name: str, layer: LayerPolicy, layers: Mapping[str, nn.Module]) -> bool:
    """Return whether ``name`` is two layers of the rank that ``layer`` says."""
    first, second = layers.get(f"{name}.0"), layers.get(f"{name}.1")
    return (
        layer.rank > 0
        and first is not None
        and second is not None
        and first.weight.shape[0] == second.weight.shape[1] == layer.rank
    )


def default_policy(
    module: nn.Module,
    sparsity: str = "2:4",
    lut_bits: int | None = 4,
    *,
    first: bool = False,
    name: str | None = None,
) -> Policy:
    """Return a policy for a whole network; the compiler chooses the shares of the LUT core.

    Every layer has ``sparsity`` on the DSP core and ``lut_bits`` on the LUT core (None: all of it
    runs on the DSP core), but for two kinds. Depthwise convolutions stay dense, on the DSP core:
    one input leaves nothing to prune. The first layer stays dense at 8 bits on both, for accuracy,
    unless ``first``.

    Raises
    ------
    TwillcoreError
        If a value is wrong.
    """
    if lut_bits is None:
        usual, exact = LayerPolicy(sparsity, lut_share=0.0), LayerPolicy(lut_share=0.0)
    else:
        usual, exact = LayerPolicy(sparsity, lut_bits=lut_bits), LayerPolicy(lut_bits=8)
    if problems := list(usual.problems()):
        raise TwillcoreError("; ".join(problems))
    layers = {}
    for number, (layer_name, layer) in enumerate(sparse_layers(module).items()):
        if is_depthwise(layer):
            layers[layer_name] = LayerPolicy(lut_share=0.0)
        elif number == 0 and not first:
            layers[layer_name] = exact
        else:
            layers[layer_name] = usual
    return Policy(name or type(module).__name__, layers)
