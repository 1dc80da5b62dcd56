"""Random quantised graphs of feature maps, from a seed: convolutions, pooling, concatenation."""

import dataclasses
import math

import numpy as np

from twillcore.compiler.graph import (
    Concat,
    Conv,
    Graph,
    Linear,
    Map,
    MaxPool,
    Op,
    Tensor,
    both_directions,
    reads,
    windows_see_pixels,
)
from twillcore.config import PRESETS, Config
from twillcore.isa import Function
from twillcore.numerics import TABLE_ENTRIES
from twillcore.sim.reference import run_op

CNN = PRESETS["tiny"].replace(name="cnn", tap_depth=64, lut_columns=8, lut_weight_depth=256)


def random_map_graph(
    seed: int,
    config: Config = CNN,
    ops: int | None = None,
    largest: int = 9,
    channels: int = 20,
    kinds: tuple[str, ...] = ("conv",) * 5 + ("depthwise", "grouped", "pool", "concat", "linear",
                                              "map"),
) -> Graph:  # fmt: skip
    """Return a graph of about ``ops`` (1..5 if None) layers; maps are up to ``largest`` squared."""
    builder = _Builder(np.random.default_rng((seed, 7)), config, largest, channels)
    for _ in range(ops if ops is not None else builder.pick(1, 5)):
        getattr(builder, str(builder.rng.choice(kinds)))()
    return builder.graph(seed)


def random_map_inputs(graph: Graph, seed: int) -> dict[str, np.ndarray]:
    """Return random int8 inputs."""
    rng = np.random.default_rng((seed, 1))
    return {
        name: rng.integers(-128, 128, graph.tensors[name].shape).astype(np.int8)
        for name in graph.inputs
    }


def random_weights(rng, shape, block: int, beats: int, lut: int = 0, bits: int = 8) -> np.ndarray:
    """Return int8 weights (N, .., K): N:B, but the last ``lut`` outputs are dense, of few bits."""
    k = shape[-1]
    weight = rng.integers(-128, 128, (*shape[:-1], -(-k // block), block))
    rank = rng.random(weight.shape).argsort(-1).argsort(-1)
    weight[rank >= beats] = 0
    weight = weight.reshape(*shape[:-1], -1)[..., :k]
    first = shape[0] - lut
    weight[first:] = rng.integers(-1 << bits - 1, 1 << bits - 1, weight[first:].shape)
    return weight.astype(np.int8)


class _Builder:
    """A growing graph; ``values`` holds a sample of every tensor, which the scales follow."""

    def __init__(self, rng, config: Config, largest: int, channels: int) -> None:
        self.rng, self.config, self.largest, self.channels = rng, config, largest, channels
        self.batch = int(rng.choice([1, 1, 2]))
        self.tensors, self.values, self.ops, self.inputs = {}, {}, [], []
        self.input((self.pick(1, largest), self.pick(1, largest)), self.pick(1, channels))

    def pick(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def coin(self, probability: float = 0.5) -> bool:
        return bool(self.rng.random() < probability)

    def tensor(self, grid, channels: int, bits: int = 8) -> str:
        name = f"t{len(self.tensors)}"
        self.tensors[name] = Tensor(name, self.batch, math.prod(grid), channels, bits, 1.0,
                                    grid=grid)  # fmt: skip
        return name

    def input(self, grid, channels: int) -> str:
        name = self.tensor(grid, channels)
        self.inputs.append(name)
        self.values[name] = self.rng.integers(-128, 128, self.tensors[name].shape)
        return name

    def find(self, grid=None, channels=None, bits=(8,)) -> str | None:
        fitting = [
            t.name
            for t in self.tensors.values()
            if t.grid
            and t.bits in bits
            and grid in (None, t.grid)
            and channels in (None, t.channels)
        ]
        if not fitting:
            return None
        return fitting[-1] if self.coin(0.7) else str(self.rng.choice(fitting))

    def add(self, op: Op) -> None:
        self.ops.append(op)
        graph = Graph(self.config, self.tensors, (), (), ())
        self.values.update(run_op(graph, op, {name: self.values[name] for name in reads(op)}))

    def window(self, x: str, strides=None):
        """Return kernel, stride, padding and dilation that fit a map, and the output's grid.

        The stride is 1 or 2, or one of ``strides`` (vertical, horizontal).
        """
        for _ in range(100):
            kernel = self.pick(1, 4), self.pick(1, 4)
            if self.coin(0.4):
                kernel = 3, 3
            if strides is None:
                stride = int(self.rng.choice([1, 1, 1, 2, 2]))
            else:
                stride = strides[self.pick(0, len(strides) - 1)]
            dilation = self.pick(1, 2), self.pick(1, 3)
            reach = [(k - 1) * distance for k, distance in zip(kernel, dilation, strict=True)]
            padding = tuple(self.pick(0, n // 2 + 1) for n in reach)
            spans = [n + 1 for n in reach]
            steps = both_directions(stride)
            sizes = zip(self.tensors[x].grid, padding, spans, steps, strict=True)
            grid = tuple((n + 2 * p - s) // t + 1 - self.coin(0.1) for n, p, s, t in sizes)
            if min(grid) >= 1:
                return kernel, stride, padding, dilation, grid
        return (1, 1), 1, (0, 0), 1, self.tensors[x].grid

    def drain(self, n: int, grid, spread: float) -> dict:
        """Return what Conv, Linear and Map share."""
        function = Function(self.pick(0, 2 if self.config.function_table else 1))
        bits = 16 if self.config.wide_depth and self.coin(0.15) else 8
        table = None
        if function == Function.TABLE:
            table = np.clip(self.rng.integers(-200, 200, TABLE_ENTRIES).cumsum(), -32768, 32767)
        multiplier = self.rng.integers(1 << 13, 1 << 15, n)
        target = 700.0 if function == Function.TABLE or bits == 8 else 4000.0
        shift = min(max(round(math.log2((1 << 14) * max(spread, 1) / target)), 0), 40)
        wanted = (8, 16) if self.config.wide_depth else (8,)
        residual = self.find(grid, n, wanted) if self.coin(0.4) else None
        return {
            "out": self.tensor(grid, n, bits),
            "bias": self.rng.integers(-int(spread) - 1, int(spread) + 2, n) // 4,
            "multiplier": multiplier,
            "shift": np.clip(shift + self.rng.integers(-1, 2, n), 0, 63),
            "narrow_shift": np.clip(4 + self.rng.integers(-1, 2, n), 0, 15),
            "residual": residual,
            "residual_shift": self.pick(-3, 3) if residual else 0,
            "function": function,
            "table": table,
        }

    def lut(self, n: int) -> dict:
        """Return a share of the LUT core."""
        if not self.config.lut_columns or self.coin(0.4):
            return {}
        block = self.config.block
        first = block * self.pick(0, n // block)
        if first == n:
            return {}
        bits = self.pick(2, 6)
        return {"lut_channels": n - first, "lut_bits": bits, "help": bits % 3 > 0}

    def weight(self, shape, lut: dict, beats: int) -> np.ndarray:
        return random_weights(
            self.rng, shape, self.config.block, beats, lut.get("lut_channels", 0),
            lut.get("lut_bits", 1),
        )  # fmt: skip

    def _conv(self, x: str, n: int, groups: int, strides=None) -> None:
        kernel, stride, padding, dilation, grid = self.window(x, strides)
        channels = self.tensors[x].channels // groups
        lut, beats = self.lut(n), self.pick(1, self.config.block)
        weight = self.weight((n, *kernel, channels), lut, beats)
        sums = 5000.0 * math.sqrt(max(weight[0].size * beats / 8, 1))
        drain = self.drain(n, grid, sums)
        self.add(
            Conv(f"conv.{len(self.ops)}", x, weight=weight, stride=stride, padding=padding,
                 dilation=dilation, groups=groups, beats=beats, **drain, **lut)
        )  # fmt: skip

    def conv(self) -> None:
        self._conv(self.find(), self.pick(1, self.channels), 1)

    def depthwise(self) -> None:
        x = self.find()
        channels = self.tensors[x].channels
        self._conv(x, channels, channels)

    def grouped(self) -> None:
        groups = self.pick(2, 4)
        inputs, outputs = (int(self.rng.choice([1, 2, 4, 8, 8, 16, 3])) for _ in range(2))
        source = self.find()
        lines = self.tensors[source].grid
        x = self.find(lines, groups * inputs) or self.input(lines, groups * inputs)
        self._conv(x, groups * outputs, groups)

    def uneven(self) -> None:
        """Convolution or pooling with another stride in every direction."""
        strides = [(down, right) for down in range(1, 8) for right in (1, 2)]
        if self.coin(0.3):
            self.pool(strides)
        else:
            self._conv(self.find(), self.pick(1, self.channels), 1, strides)

    def every(self) -> None:
        """Take every n-th pixel."""
        x = self.find()
        steps = self.pick(1, 7), self.pick(2, 7)
        grid = tuple(
            (n - 1) // step + 1 for n, step in zip(self.tensors[x].grid, steps, strict=True)
        )
        out = self.tensor(grid, self.tensors[x].channels)
        self.add(MaxPool(f"every.{len(self.ops)}", x, out, (1, 1), steps, (0, 0)))

    def pool(self, strides=None) -> None:
        x = self.find()
        kernel, stride, padding, dilation, grid = self.window(x, strides)
        pixels = self.tensors[x].grid
        if not windows_see_pixels(pixels, kernel, grid, stride, padding, dilation):
            return
        out = self.tensor(grid, self.tensors[x].channels)
        self.add(MaxPool(f"pool.{len(self.ops)}", x, out, kernel, stride, padding, dilation))

    def concat(self) -> None:
        first = self.find()
        grid = self.tensors[first].grid
        block = self.config.block
        fitting = [t.name for t in self.tensors.values() if t.grid == grid and t.bits == 8]
        parts = [str(self.rng.choice(fitting)) for _ in range(self.pick(1, 2))] + [first]
        words = sum(-(-self.tensors[name].channels // block) for name in parts[:-1])
        channels = words * block + self.tensors[first].channels
        self.add(Concat(f"concat.{len(self.ops)}", tuple(parts), self.tensor(grid, channels)))

    def linear(self) -> None:
        x = self.find()
        n, lut, beats = self.pick(1, self.channels), {}, self.pick(1, self.config.block)
        lut = self.lut(n)
        weight = self.weight((n, self.tensors[x].channels), lut, beats)
        sums = 5000.0 * math.sqrt(max(weight[0].size * beats / 8, 1))
        drain = self.drain(n, self.tensors[x].grid, sums)
        if self.coin(0.2) and drain["residual"] is None:  # rows that are no pixels any more
            out = self.tensors[drain["out"]]
            self.tensors[out.name] = dataclasses.replace(out, grid=None)
        self.add(Linear(f"linear.{len(self.ops)}", x, weight=weight, beats=beats, **drain, **lut))

    def map(self) -> None:
        x = self.find()
        tensor = self.tensors[x]
        self.add(Map(f"map.{len(self.ops)}", x, **self.drain(tensor.channels, tensor.grid, 70.0)))

    def graph(self, seed: int) -> Graph:
        read = {name for op in self.ops for name in reads(op)}
        made = [name for name in self.tensors if name not in self.inputs]
        outputs = tuple(name for name in made if name not in read or self.coin(0.1))
        return Graph(self.config, self.tensors, tuple(self.ops), tuple(self.inputs),
                     outputs or (self.inputs[0],), (), {"seed": seed})  # fmt: skip


def residual_block(config: Config, side: int, channels: int, beats: int, lut: int) -> Graph:
    """Return two 3 x 3 convolutions and the sum with what they had been given, as in ResNet.

    The last ``lut`` channels are the LUT core's, of 4 bits; the others are ``beats`` of a block.
    """
    rng = np.random.default_rng(channels)
    tensors = {
        name: Tensor(name, 1, side * side, channels, 8, 1.0, grid=(side, side))
        for name in ("x", "middle", "out")
    }
    ops = []
    for x, out, residual in (("x", "middle", None), ("middle", "out", "x")):
        weight = random_weights(rng, (channels, 3, 3, channels), config.block, beats, lut, 4)
        norms = np.sqrt((weight.astype(float) ** 2).reshape(channels, -1).sum(1))
        # sums of products with activations of about 74, to about 74 * 2**4 before it is narrowed
        mantissa, exponent = np.frexp(2**4 / norms)
        ops.append(
            Conv(out, x, out, weight, 1, (1, 1), 1, 1, beats, bias=np.zeros(channels, int),
                 multiplier=(mantissa * (1 << 15)).astype(int).clip(max=(1 << 15) - 1),
                 shift=15 - exponent, narrow_shift=np.full(channels, 4), residual=residual,
                 residual_shift=4 if residual else 0, function=Function.RELU, lut_channels=lut,
                 lut_bits=4 if lut else 0, help=True)
        )  # fmt: skip
    return Graph(config, tensors, tuple(ops), ("x",), ("out",))
