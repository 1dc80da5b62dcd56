"""Tensors that lie in another one and have no buffer of their own.

The inputs of a Concat are written into the channels of its output, and a layer writes its output
over its residual where nobody else reads that.
"""

from twillcore.compiler.graph import (
    Concat,
    Conv,
    Elementwise,
    Graph,
    LayerNorm,
    Linear,
    Map,
    MaxPool,
    Op,
    reads,
    writes,
)


def is_tiled_exactly(op: Op, graph: Graph) -> bool:
    """Whether an op writes only words that hold channels, and none to fill up a column tile."""
    if isinstance(op, Linear):
        narrow = op.residual is not None and graph.tensors[op.residual].bits == 8
        return bool(op.lut_channels or narrow or graph.tensors[op.out].grid)
    if isinstance(op, Map | Elementwise | LayerNorm):
        return all(graph.tensors[name].grid is not None for name in writes(op))
    return isinstance(op, Conv | MaxPool | Concat)


def find_parts(graph: Graph) -> dict[str, tuple[str, int]]:
    """Return the tensors that lie in another one: its name, and the first word of theirs."""
    writers = {name: op for op in graph.ops for name in writes(op)}
    last_read = {name: op for op in graph.ops for name in reads(op)}
    shared = {*graph.inputs, *graph.outputs}  # they have a place in DRAM of their own
    parts: dict[str, tuple[str, int]] = {}
    for op in graph.ops:
        if not isinstance(op, Concat):
            continue
        word = 0
        for name in op.parts:
            free = name not in shared and name not in parts and op.parts.count(name) == 1
            if free and is_tiled_exactly(writers[name], graph):
                parts[name] = op.out, word
            word += -(-graph.tensors[name].channels // graph.config.block)
    concatenated = {op.out for op in graph.ops if isinstance(op, Concat)} | parts.keys()
    for op in graph.ops:
        residual = getattr(op, "residual", None)
        if residual is None or not is_tiled_exactly(op, graph) or last_read[residual] is not op:
            continue
        alike = graph.tensors[residual].bits == graph.tensors[op.out].bits and is_tiled_exactly(
            writers.get(residual, op), graph
        )
        if alike and op.x != residual and not {residual, op.out} & (shared | concatenated):
            parts[op.out] = residual, 0
    return parts
