"""Random quantised graphs, from a seed: what every pair of engines is compared on.

The generator executes the graph while it grows it, and chooses scales from the values that it sees,
so that results neither vanish nor all saturate (either would hide errors).
"""

import math

import numpy as np

from twillcore.compiler.graph import (
    Attention,
    Elementwise,
    Graph,
    LayerNorm,
    Linear,
    Map,
    MatMul,
    Softmax,
    Tensor,
    reads,
)
from twillcore.config import PRESETS, Config
from twillcore.isa import ElementwiseOp, Function
from twillcore.numerics import TABLE_ENTRIES
from twillcore.sim.reference import exact_matmul, run_op

TINY = PRESETS["tiny"]
KINDS = ("linear", "map", "matmul", "attention", "softmax", "layer_norm", "elementwise")


def random_graph(
    seed: int,
    config: Config = TINY,
    kinds: tuple[str, ...] = KINDS,
    ops: int | None = None,
    largest: int = 30,
) -> Graph:
    """Return a graph of about ``ops`` (2..6 if None) random operations of ``kinds``.

    Rows and channels go up to ``largest``; the batch up to 3. Every tensor that nobody reads is an
    output, and sometimes others are.
    """
    builder = _Builder(np.random.default_rng(seed), config, largest)
    for _ in range(ops if ops is not None else builder.pick(2, 6)):
        getattr(builder, str(builder.rng.choice(kinds)))()
    return builder.graph(seed)


def random_inputs(graph: Graph, seed: int) -> dict[str, np.ndarray]:
    """Return random inputs; some masks exclude every key of an item."""
    rng = np.random.default_rng((seed, 1))
    return {
        name: _random_tensor(rng, graph.tensors[name]) for name in (*graph.inputs, *graph.masks)
    }


def sparse_weight(
    rng: np.random.Generator, columns: int, channels: int, block: int, beats: int
) -> np.ndarray:
    """Return int8 (columns, channels) with at most ``beats`` non-zeros in each aligned block."""
    blocks = -(-channels // block)
    weight = rng.integers(-128, 128, (columns, blocks, block))
    rank = rng.random(weight.shape).argsort(-1).argsort(-1)
    weight[rank >= beats] = 0
    return weight.reshape(columns, -1)[:, :channels].astype(np.int8)


def _random_tensor(rng: np.random.Generator, tensor: Tensor) -> np.ndarray:
    if tensor.bits == 1:
        kept = rng.choice([0.0, 0.3, 0.8, 1.0], (tensor.batch, 1, 1), p=[0.1, 0.4, 0.4, 0.1])
        return rng.random(tensor.shape) < kept
    high = 1 << (tensor.bits - 1)
    if tensor.bits == 8:
        return rng.integers(-high, high, tensor.shape).astype(np.int8)
    return np.clip(rng.normal(0, 1500, tensor.shape), -high, high - 1).astype(np.int16)


class _Builder:
    """A growing graph; ``values`` holds a sample of every tensor."""

    def __init__(self, rng: np.random.Generator, config: Config, largest: int) -> None:
        self.rng, self.config, self.largest = rng, config, largest
        self.batch = int(rng.choice([1, 1, 2, 3]))
        self.tensors, self.values, self.ops = {}, {}, []
        self.inputs, self.masks = [], []

    def pick(self, low: int, high: int) -> int:
        """Return an integer in low..high, both included."""
        return int(self.rng.integers(low, high + 1))

    def coin(self, probability: float = 0.5) -> bool:
        return bool(self.rng.random() < probability)

    # tensors

    def tensor(self, rows: int, channels: int, bits: int, stem: str = "t") -> str:
        name = f"{stem}{len(self.tensors)}"
        scale = 1.0 if bits == 1 else float(2.0 ** -self.pick(2, 8))
        self.tensors[name] = Tensor(name, self.batch, rows, channels, bits, scale)
        return name

    def input(self, rows: int, channels: int, bits: int) -> str:
        name = self.tensor(rows, channels, bits, "mask" if bits == 1 else "input")
        (self.masks if bits == 1 else self.inputs).append(name)
        self.values[name] = _random_tensor(self.rng, self.tensors[name]).astype(np.int64)
        return name

    def find(self, rows=None, channels=None, bits=8) -> str:
        """Return a tensor like that: one that exists, more likely a late one, or a new input."""
        fitting = [
            t.name
            for t in self.tensors.values()
            if t.bits == bits and rows in (None, t.rows) and channels in (None, t.channels)
        ]
        if fitting and self.coin(0.85):
            return fitting[-1] if self.coin(0.7) else str(self.rng.choice(fitting))
        rows = rows or self.pick(1, self.largest)
        return self.input(rows, channels or self.pick(1, self.largest), bits)

    def shape(self, name: str) -> tuple[int, int]:
        return self.tensors[name].rows, self.tensors[name].channels

    def add(self, op) -> None:
        self.ops.append(op)
        graph = Graph(self.config, self.tensors, (), (), ())
        self.values.update(run_op(graph, op, {name: self.values[name] for name in reads(op)}))

    def name(self, kind: str) -> str:
        return f"{kind}.{len(self.ops)}"

    # numbers

    def scale(self, sums: np.ndarray, target: float) -> tuple[int, int]:
        """Return multiplier and shift that bring ``sums`` to a spread of about ``target``."""
        multiplier = self.pick(1 << 12, (1 << 15) - 1)
        spread = max(float(np.sqrt((sums.astype(np.float64) ** 2).mean())), 1.0)
        return multiplier, min(max(round(math.log2(multiplier * spread / target)), 0), 40)

    def column_scales(self, sums: np.ndarray, target: float):
        """Return bias, multiplier and shift of each column, with a few extremes among them."""
        columns = sums.shape[-1]
        multiplier, shift = self.scale(sums, target)
        spread = int(np.abs(sums).max()) + 1
        bias = self.rng.integers(-spread, spread + 1, columns) >> self.pick(1, 4)
        multipliers = np.clip(
            (multiplier * self.rng.uniform(0.5, 1.0, columns)).astype(np.int64), 1, 32767
        )
        multipliers[self.rng.random(columns) < 0.1] *= -1
        shifts = np.clip(shift + self.rng.integers(-1, 2, columns), 0, 63)
        if self.coin(0.2):
            odd = self.rng.integers(columns)
            bias[odd] = self.rng.choice([-(1 << 31), (1 << 31) - 1, 0])
            multipliers[odd] = self.rng.choice([-(1 << 15), 1, 0])
            shifts[odd] = self.rng.choice([0, 1, 31, 63])
        return bias, multipliers, shifts

    def narrow_shifts(self, columns: int) -> np.ndarray:
        return np.clip(self.pick(4, 6) + self.rng.integers(-1, 2, columns), 0, 15)

    def drain(self, sums: np.ndarray) -> dict:
        """Return the arguments that Linear and Map share, for these sums."""
        rows, columns = sums.shape[1:]
        function = Function(self.pick(0, 2))
        wide = self.coin(0.35)
        target = 700.0 if function == Function.TABLE or not wide else 4000.0
        bias, multiplier, shift = self.column_scales(sums, target)
        residual = self.find(rows, columns, 16) if self.coin(0.3) else None
        table = None
        if function == Function.TABLE:
            slopes = self.rng.integers(-200, 200, TABLE_ENTRIES)
            table = np.clip(slopes.cumsum(), -(1 << 15), (1 << 15) - 1)
            if self.coin(0.2):
                table = self.rng.integers(-(1 << 15), 1 << 15, TABLE_ENTRIES)
        return {
            "out": self.tensor(rows, columns, 16 if wide else 8),
            "bias": bias,
            "multiplier": multiplier,
            "shift": shift,
            "narrow_shift": self.narrow_shifts(columns),
            "residual": residual,
            "residual_shift": self.pick(-2, 3) if residual else 0,
            "function": function,
            "table": table,
        }

    # operations

    def linear(self) -> None:
        x = self.find()
        channels, columns = self.shape(x)[1], self.pick(1, self.largest)
        beats = self.pick(1, self.config.block)
        weight = sparse_weight(self.rng, columns, channels, self.config.block, beats)
        sums = exact_matmul(self.values[x], weight.T)
        self.add(
            Linear(self.name("linear"), x, weight=weight, beats=beats, **self.drain(sums))
        )  # fmt: skip

    def map(self) -> None:
        x = self.find()
        self.add(Map(self.name("map"), x, **self.drain(self.values[x])))

    def matmul(self) -> None:
        a = self.find()
        rows, inner = self.shape(a)
        transpose = self.coin()
        b = self.find(channels=inner) if transpose else self.find(rows=inner)
        columns = self.shape(b)[0 if transpose else 1]
        right = self.values[b].swapaxes(1, 2) if transpose else self.values[b]
        multiplier, shift = self.scale(exact_matmul(self.values[a], right), 1000.0)
        out = self.tensor(rows, columns, 16 if self.coin(0.3) else 8)
        self.add(
            MatMul(self.name("matmul"), a, b, out, transpose, multiplier, shift,
                   self.narrow_shifts(columns))
        )  # fmt: skip

    def projection(self, x: str, columns: int) -> str:
        """Return a new int8 tensor with as many columns: a plain Linear of ``x``."""
        weight = sparse_weight(
            self.rng, columns, self.shape(x)[1], self.config.block, self.config.block
        )
        sums = exact_matmul(self.values[x], weight.T)
        bias, multiplier, shift = self.column_scales(sums, 1000.0)
        out = self.tensor(self.shape(x)[0], columns, 8)
        self.add(
            Linear(self.name("projection"), x, out, weight, self.config.block, bias=bias,
                   multiplier=multiplier, shift=shift, narrow_shift=self.narrow_shifts(columns))
        )  # fmt: skip
        return out

    def attention(self) -> None:
        heads = self.pick(1, 3)
        head_channels = self.config.dsp_columns * (2 if self.coin(0.3) else 1)
        channels = heads * head_channels
        x = self.find()
        y = x if self.coin(0.6) else self.find()
        if self.coin(0.8):
            q, k, v = (self.projection(source, channels) for source in (x, y, y))
        else:  # not from a Linear, so that padding rows come from elsewhere
            q, k = self.find(channels=channels), self.find(channels=channels)
            v = self.find(rows=self.shape(k)[0], channels=channels)
        keys = self.shape(k)[0]
        mask = self.input(1, keys, 1) if self.coin(0.6) else None
        sums = exact_matmul(self.values[q], self.values[k].swapaxes(1, 2))
        multiplier, shift = self.scale(sums, float(self.rng.choice([10.0, 40.0, 200.0])))
        self.add(
            Attention(
                self.name("attention"), q, k, v,
                out=self.tensor(self.shape(q)[0], channels, 8),
                heads=heads, head_channels=head_channels,
                multiplier=multiplier, shift=shift,
                numerator=self.pick(1 << 15, (1 << 16) - 1), lane_shift=self.pick(35, 38),
                narrow_shift=np.clip(self.narrow_shifts(channels) - 3, 0, 15), mask=mask,
            )
        )  # fmt: skip

    def softmax(self) -> None:
        x = self.find()
        multiplier, shift = self.scale(self.values[x], float(self.rng.choice([10.0, 40.0])))
        out = self.tensor(*self.shape(x), 8)
        self.add(
            Softmax(self.name("softmax"), x, out, multiplier, shift,
                    self.pick(1 << 15, (1 << 16) - 1), self.pick(31, 33))
        )  # fmt: skip

    def layer_norm(self) -> None:
        x = self.find(bits=16)
        rows, channels = self.shape(x)
        narrow, wide = [(True, False), (False, True), (True, True)][self.pick(0, 2)]
        gamma_bits = self.pick(6, 14)
        gamma = self.rng.integers(-(1 << gamma_bits), 1 << gamma_bits, channels)
        beta = self.rng.integers(-(1 << 29), 1 << 29, channels) >> (15 - gamma_bits)
        shift = np.clip(gamma_bits + 3 + self.rng.integers(-1, 2, channels), 0, 63)
        self.add(
            LayerNorm(
                self.name("layer_norm"), x,
                out=self.tensor(rows, channels, 8) if narrow else None,
                wide_out=self.tensor(rows, channels, 16) if wide else None,
                epsilon=int(self.rng.integers(1 << 32)) >> self.pick(0, 31),
                gamma=gamma, beta=beta, shift=shift,
                narrow_shift=self.narrow_shifts(channels),
            )
        )  # fmt: skip

    def elementwise(self) -> None:
        a = self.find(bits=int(self.rng.choice([8, 16])))
        rows, channels = self.shape(a)
        b = self.find(rows, channels, int(self.rng.choice([8, 16])))
        out = self.tensor(rows, channels, int(self.rng.choice([8, 16])))
        op = ElementwiseOp(self.pick(0, 1))
        x, y = self.values[a], self.values[b]
        multiplier, shift = self.scale(x * y if op == ElementwiseOp.MULTIPLY else x, 800.0)
        other = 0 if self.coin(0.2) else self.pick(-(1 << 15), (1 << 15) - 1)
        if self.coin(0.3):
            multiplier = -multiplier
        self.add(
            Elementwise(self.name("elementwise"), op, a, b, out, multiplier, other, shift,
                        self.pick(3, 6))
        )  # fmt: skip

    def graph(self, seed: int) -> Graph:
        read = {name for op in self.ops for name in reads(op)}
        made = [name for name in self.tensors if name not in (*self.inputs, *self.masks)]
        outputs = tuple(name for name in made if name not in read or self.coin(0.15))
        return Graph(
            self.config, self.tensors, tuple(self.ops), tuple(self.inputs), outputs,
            tuple(self.masks), {"seed": seed},
        )  # fmt: skip
