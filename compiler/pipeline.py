"""The back end's passes in order: a quantised graph becomes a program file."""

from collections.abc import Mapping

from twillcore.compiler.allocate import OutOfSpace, Placement, allocate
from twillcore.compiler.dependences import (
    derive_tokens,
    verify_contents,
    verify_order,
    verify_tokens,
)
from twillcore.compiler.emit import emit
from twillcore.compiler.errors import CompileError
from twillcore.compiler.graph import Graph, reads
from twillcore.compiler.lowering import Tuning
from twillcore.compiler.schedule import schedule
from twillcore.compiler.steps import DEPTH_PARAMETER, Plan, depth
from twillcore.compiler.tile import Pairing, Pairs, tile
from twillcore.image import Image

MOST_SHRINKS = 3  #: how often temporary buffers are halved before a network counts as too large


def compile_graph(
    graph: Graph,
    *,
    host: Mapping[str, bytes] | None = None,
    notes: Mapping[str, object] | None = None,
    tuning: Tuning | None = None,
) -> Image:
    """Compile a quantised graph for its configuration.

    Raises
    ------
    CompileError
        If a layer fits no tiling; the message says what is too large and which parameter to raise.
    """
    plan, placement = _place(graph, tuning or Tuning())
    steps = schedule(plan, placement)
    tokens = derive_tokens(steps, graph.config, placement)
    verify_tokens(steps, tokens, graph.config)
    verify_order(steps, tokens, graph.config, placement)
    verify_contents(steps, placement)
    return emit(plan, steps, placement, tokens, host, {**graph.notes, **(notes or {})})


def _place(graph: Graph, tuning: Tuning) -> tuple[Plan, Placement]:
    """Tile and allocate.

    Tensors that find no place are moved to DRAM one after the other; when there is none left,
    temporary buffers become smaller.
    """
    read = {name for op in graph.ops for name in reads(op)}
    streamed = frozenset(name for name in graph.outputs if name not in read)
    constants: dict = {}
    shrunk = 0
    while True:
        plan = tile(graph, streamed, constants, tuning)
        try:
            placement = allocate(plan)
            return _paired(graph, streamed, constants, tuning, plan) or (plan, placement)
        except OutOfSpace as problem:
            victims = [
                b for b in (*problem.living, problem.buffer) if b.tensor not in (None, *streamed)
            ]
            if not victims:
                shrunk += 1
                if shrunk > MOST_SHRINKS:
                    raise _too_large(plan, problem) from None
                tuning = tuning.smaller()
                continue
            streamed |= {max(victims, key=lambda buffer: buffer.size).tensor}


def _paired(
    graph: Graph, streamed: frozenset[str], constants: dict, tuning: Tuning, plan: Plan
) -> tuple[Plan, Placement] | None:
    """Tile with some neighbouring layers together, and allocate; None if none pay and fit."""
    pairs = Pairs(graph, plan, streamed, constants, tuning)
    while chosen := pairs.best():
        plan = tile(graph, streamed, constants, tuning, chosen)
        try:
            placement = allocate(plan)
            refused = [
                n
                for n in chosen
                if chosen[n] == Pairing.INTERLEAVED
                and pairs.need_room(n)
                and placement.tight & {n, n + 1}
            ]
        except OutOfSpace as problem:
            number = plan.steps[problem.step].layer
            refused = [n for n in (number - 1, number) if n in chosen]
            if not refused:
                return None
        if not refused:
            return plan, placement
        for number in refused:
            pairs.refuse(number, chosen[number])
    return None


def _too_large(plan: Plan, problem: OutOfSpace) -> CompileError:
    space = problem.buffer.space
    layer = plan.layers[plan.steps[problem.step].layer].name
    parameter = DEPTH_PARAMETER[space]
    needed = problem.buffer.size + sum(buffer.size for buffer in problem.living)
    return CompileError(
        f"{layer}: {problem.buffer.name} needs {problem.buffer.size} of the"
        f" {depth(space, plan.config)} units of the {space.name.lower()} memory, and with all that"
        f" is in use at the same time {needed}; raise {parameter}"
    )
