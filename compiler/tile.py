"""Graph to :class:`~twillcore.compiler.steps.Plan`: each op into tiles that fit the memories."""

import itertools
from collections.abc import Mapping
from enum import Enum, auto
from types import MappingProxyType

from twillcore.compiler.attention import lower_attention, lower_matmul
from twillcore.compiler.convolution import lower_concat, lower_conv, lower_map, lower_max_pool
from twillcore.compiler.fusion import lower_fused
from twillcore.compiler.graph import (
    Attention,
    Concat,
    Conv,
    Elementwise,
    Graph,
    LayerNorm,
    Linear,
    Map,
    MatMul,
    MaxPool,
    Op,
    Softmax,
)
from twillcore.compiler.identity_products import lower_map_by_tiles, lower_softmax
from twillcore.compiler.interleave import interleave, load_of
from twillcore.compiler.linear import lower_linear
from twillcore.compiler.lowering import Lowering, Tuning, pieces
from twillcore.compiler.steps import Plan, Step
from twillcore.compiler.tensor_parts import is_tiled_exactly
from twillcore.compiler.vector_steps import lower_elementwise, lower_layer_norm

LEAST_GAIN = 0.03  #: of the time of two layers one after the other, for them to go together
BUSY_PORT = 0.7  #: of the time of two layers, for which transfers must not wait for their buffers


class Pairing(Enum):
    """How two layers go together: the map between them goes to DRAM and back, or never does."""

    INTERLEAVED = auto()
    FUSED = auto()
    FUSED_SMALL = auto()  # with smaller bands


SHARES = {Pairing.FUSED: 0.92, Pairing.FUSED_SMALL: 0.5}  #: of the activation memory


def tile(
    graph: Graph,
    streamed: frozenset[str],
    constants: dict,
    tuning: Tuning,
    paired: Mapping[int, Pairing] = MappingProxyType({}),
) -> Plan:
    """Return the steps of ``graph`` when the tensors in ``streamed`` live in DRAM.

    Layers whose numbers are in ``paired`` go together with those that follow them.
    """
    lowering = Lowering(graph, streamed, constants, tuning)
    for number, op in enumerate(graph.ops):
        if number in paired:
            _lower_pair(lowering, op, graph.ops[number + 1], paired[number])
        elif number - 1 not in paired:
            _LOWER[type(op)](lowering, op)
    written = {name for op in graph.ops for name in (getattr(op, "out", None),
               getattr(op, "wide_out", None))}  # fmt: skip
    for name in dict.fromkeys(graph.outputs):
        if name not in written:  # an output that is an input
            lowering.layer(f"copy {name}")
            _copy(lowering, name)
    return lowering.plan()


def _lower_pair(low: Lowering, first: Op, second: Op, pairing: Pairing) -> None:
    """Lower two layers band by band."""
    if pairing in SHARES:
        lower_fused(low, first, second, SHARES[pairing])
        return
    tuning, low.tuning = low.tuning, low.tuning.paired()
    start = len(low.steps)
    _LOWER[type(first)](low, first)
    middle = len(low.steps)
    _LOWER[type(second)](low, second)
    low.tuning = tuning
    low.replace(start, interleave(low.steps[start:middle], low.steps[middle:], low.config))


class Pairs:
    """Which layers of a plan had better go together with the next ones, and how."""

    def __init__(
        self, graph: Graph, plan: Plan, streamed: frozenset[str], constants: dict, tuning: Tuning
    ) -> None:
        self._gains: list[dict[Pairing, float]] = [{}]  # of every layer with the one before it
        steps: dict[int, list[Step]] = {number: [] for number in range(len(plan.layers))}
        for step in plan.steps:
            steps[step.layer].append(step)
        loads = [load_of(steps[number], graph.config) for number in range(len(graph.ops))]
        self._need_room: set[int] = set()
        for number, (first, second) in enumerate(itertools.pairwise(graph.ops)):
            self._gains.append({})
            if not (
                isinstance(first, Conv | MaxPool)
                and isinstance(second, Conv | MaxPool)
                and second.x == first.out
                and first.out in streamed
                and plan.by_bands >= {number, number + 1}
            ):
                continue
            apart = (loads[number].bound + loads[number + 1].bound) * (1 - LEAST_GAIN)
            together = loads[number] + loads[number + 1]
            self._gains[-1][Pairing.INTERLEAVED] = apart - together.bound
            if max(together.read, together.write) > BUSY_PORT * together.bound:
                self._need_room.add(number)
            for pairing, share in SHARES.items():
                trial = Lowering(graph, streamed, constants, tuning)
                trial.layers = list(plan.layers[:number])
                if lower_fused(trial, first, second, share):
                    load = load_of(trial.steps, graph.config)
                    self._gains[-1][pairing] = apart - load.bound

    def refuse(self, number: int, pairing: Pairing) -> None:
        """Do not propose a pairing of layer ``number`` with the next one any more."""
        del self._gains[number + 1][pairing]

    def need_room(self, number: int) -> bool:
        """Whether interleaving a layer with the next one pays only if transfers can overlap."""
        return number in self._need_room and Pairing.INTERLEAVED in self._gains[number + 1]

    def best(self) -> dict[int, Pairing]:
        """Return the pairs that save most, by the number of the first layer."""
        best: list[tuple[float, dict[int, Pairing]]] = [(0.0, {})]  # of ever more layers
        for number, gains in enumerate(self._gains):
            best.append(best[number])
            for pairing, gain in gains.items():
                saved, chosen = best[number - 1]
                if saved + gain > best[-1][0]:
                    best[-1] = saved + gain, {**chosen, number - 1: pairing}
        return best[-1][1]


def _copy(low: Lowering, name: str) -> None:
    rows = low.rows(low.tensor(name))
    for row, count in pieces(rows, rows):
        held = low.read(name, row, count)
        low.load(held, row, count)
        low.store(held, row, count)


def _lower_linear(low: Lowering, op: Linear) -> None:
    (lower_conv if is_tiled_exactly(op, low.graph) else lower_linear)(low, op)


def _lower_map(low: Lowering, op: Map) -> None:
    (lower_map if is_tiled_exactly(op, low.graph) else lower_map_by_tiles)(low, op)


_LOWER = {
    Linear: _lower_linear,
    Conv: lower_conv,
    MaxPool: lower_max_pool,
    Concat: lower_concat,
    Map: _lower_map,
    MatMul: lower_matmul,
    Attention: lower_attention,
    Softmax: lower_softmax,
    LayerNorm: lower_layer_norm,
    Elementwise: lower_elementwise,
}
