"""Which output channels go to the core of look-up tables, at few bits.

By variance, as Mix&Match (Chang et al. 2021, HPCA): narrow rows suit few or power-of-two levels.
By divergence, as N3H-Core (2022): the rows whose histogram few bits change least. The share is the
throughput of the LUT core over that of both.

The LUT core computes the last channels of a layer, so those that it should have are moved there.
That is free where nothing but channel by channel operations lies between a layer and the next one,
whose inputs move along; other layers keep their order.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from twillcore.config import Config
from twillcore.errors import TwillcoreError
from twillcore.models.layout import SPARSE_LAYERS, is_depthwise
from twillcore.models.policy import Policy
from twillcore.models.qat import quantise_rows

BINS = 64
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
CHANNELWISE = (
    nn.ReLU, nn.ReLU6, nn.GELU, nn.Hardswish, nn.SiLU, nn.Identity, nn.Dropout, nn.MaxPool2d,
    nn.AvgPool2d, nn.AdaptiveAvgPool2d,
)  # fmt: skip
CHANNELWISE_FUNCTIONS = (
    functional.relu, functional.relu6, functional.gelu, functional.hardswish, functional.silu,
    functional.dropout, torch.relu,
)  # fmt: skip


def lut_count(outputs: int, bits: int, config: Config) -> int:
    """Return how many channels the LUT core computes while the other does the rest of a layer.

    In whole blocks; none where the outputs are no whole blocks.
    """
    if outputs % config.block:
        return 0
    share = share_of(config.lut_columns / bits, config.dsp_columns / config.block)
    return round(share * outputs / config.block) * config.block


@torch.no_grad()
def arrange(
    module: nn.Module, example_inputs: Sequence[Tensor], score: Callable[[Tensor], Tensor]
) -> list[str]:
    """Sort output channels by falling ``score``, in place; return the names of layers so sorted.

    What the module computes stays the same. ``score`` is of the rows of a weight (outputs, inputs).

    Raises
    ------
    TwillcoreError
        If the module cannot be traced, or computes something else afterwards.
    """
    try:
        graph = fx.symbolic_trace(module).graph
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise TwillcoreError(f"channels cannot be arranged, no trace: {error}") from None
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    before = module(*example_inputs)
    done = []
    for node in graph.nodes:
        if node.op != "call_module" or calls[node.target] > 1:
            continue
        layer = module.get_submodule(node.target)
        if not isinstance(layer, SPARSE_LAYERS) or getattr(layer, "groups", 1) > 1:
            continue
        if (found := _consumer(node, module, calls)) is None:
            continue
        between, consumer = found
        order = score(layer.weight.reshape(len(layer.weight), -1)).sort(
            descending=True, stable=True
        ).indices  # fmt: skip
        for moved in (layer, *between):
            for name in ("weight", "bias", "running_mean", "running_var"):
                if (value := getattr(moved, name, None)) is not None:
                    value.copy_(value[order])
        consumer.weight.copy_(consumer.weight[:, order])
        done.append(node.target)
    if not torch.allclose(module(*example_inputs), before, rtol=1e-3, atol=1e-3):
        raise TwillcoreError("channels cannot be arranged: the network computes something else")
    return done


def _consumer(
    node: fx.Node, module: nn.Module, calls: Counter
) -> tuple[list[nn.Module], nn.Module] | None:
    """Return the one layer that reads a layer's channels, and what has channels in between."""
    between = []
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.op == "call_function" and node.target in CHANNELWISE_FUNCTIONS:
            continue
        if node.op != "call_module" or calls[node.target] > 1:
            return None
        layer = module.get_submodule(node.target)
        if isinstance(layer, NORMS) or is_depthwise(layer):
            if is_depthwise(layer) and layer.out_channels != layer.in_channels:
                return None
            between.append(layer)
        elif isinstance(layer, SPARSE_LAYERS):
            return (between, layer) if getattr(layer, "groups", 1) == 1 else None
        elif not isinstance(layer, CHANNELWISE):
            return None
    return None


@torch.no_grad()
def round_lut_channels(module: nn.Module, policy: Policy) -> None:
    """Round the weights that the LUT core computes to their bits, in place."""
    for name, layer in policy.layers.items():
        weight = module.get_submodule(name).weight
        if count := round((layer.lut_share or 0.0) * len(weight)):
            rows = weight[-count:]
            rounded = quantise_rows(rows.reshape(count, -1), layer.lut_bits)
            rows.copy_(rounded.reshape(rows.shape))


def share_of(lut_throughput: float, dsp_throughput: float) -> float:
    """Return the share at which both cores take equally long."""
    return lut_throughput / (lut_throughput + dsp_throughput)


def row_variance(weight: Tensor) -> Tensor:
    """Return the variance of each row of ``weight`` (outputs, inputs)."""
    return weight.var(1, correction=0)


def row_divergence(weight: Tensor, bits: int) -> Tensor:
    """Return the Kullback-Leibler divergence of each row's histogram from that at ``bits``.

    Weights are clipped to the rounded row's range; empty bins count as one millionth.
    """
    rounded = quantise_rows(weight, bits)
    found = []
    for row, few in zip(weight, rounded, strict=True):
        reach = max(float(few.abs().max()), 1e-12)
        p, q = (
            torch.histc(x.clamp(-reach, reach), BINS, -reach, reach).add(1e-6) for x in (row, few)
        )
        p, q = p / p.sum(), q / q.sum()
        found.append((p * (p / q).log()).sum())
    return torch.stack(found)


def sp2_levels(bits: int) -> list[float]:
    """Return the non-negative levels of SP2, sums of two powers of two, up to 1.

    ``q1 + q2`` with q1 in 0, 2**-1 .. 2**-(2**m1 - 1), q2 likewise with m2, and
    m1 + m2 = bits - 1, m1 >= m2. A product is two shifts and an addition.
    """
    m2 = (bits - 1) // 2
    m1 = bits - 1 - m2
    first, second = ([0.0] + [2.0**-k for k in range(1, 2**m)] for m in (m1, m2))
    return sorted({a + b for a, b in itertools.product(first, second)})


def quantise_to_levels(weight: Tensor, levels: list[float]) -> Tensor:
    """Return ``weight`` (outputs, inputs) at the nearest of +-levels times each row's largest."""
    scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-30) / max(levels)
    grid = torch.tensor(levels)
    nearest = ((weight / scale).abs()[..., None] - grid).abs().argmin(-1)
    return grid[nearest] * weight.sign() * scale
