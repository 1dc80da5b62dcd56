"""The exported program to prefix, chip and suffix; the chip's share becomes a float graph.

Lowering is symbolic evaluation: every node of the exported program that runs on the chip has a
value that is a :class:`~twillcore.compiler.views.View` of a canonical tensor, the not yet finished
:class:`~twillcore.compiler.symbols.Scores` of an attention, or a
:class:`~twillcore.compiler.symbols.Host` value. Rules, one per operator, make new values of old
ones; views cost nothing, ops are made where a value is computed. What only depends on inputs stays
on the host before the chip (prefix), what no multiplication needs any more stays on the host after
it (suffix).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from twillcore.compiler.builder import Builder
from twillcore.compiler.capture import UNARY, Captured, is_float, name_of, path_of, shape_of
from twillcore.compiler.errors import CompileError
from twillcore.compiler.float_graph import FloatGraph
from twillcore.compiler.rules_pad import PADS
from twillcore.compiler.rules_pointwise import POINTWISE, unary
from twillcore.compiler.rules_product import PRODUCTS
from twillcore.compiler.rules_view import IDENTITIES, PIECES, VIEWS, identity
from twillcore.compiler.rules_window import WINDOWS
from twillcore.compiler.symbols import Elsewhere, Host, Scores, Value
from twillcore.compiler.views import NoViewError, View
from twillcore.config import Config

RULES = {**VIEWS, **PIECES, **PRODUCTS, **POINTWISE, **WINDOWS, **PADS}

#: Operators for which the chip exists: what stands before the first of them is the host's.
ANCHORS = frozenset(
    {"linear", "addmm", "mm", "bmm", "baddbmm", "matmul", "scaled_dot_product_attention"}
    | {"layer_norm", "softmax", "conv1d", "conv2d", "convolution"}
)
#: Operators that end the chip's part when they leave rows out or put them together.
POOLING = frozenset(
    {"mean", "sum", "select", "slice", "amax", "amin", "max", "min", "index", "index_select"}
    | {"gather", "narrow", "logsumexp", "linalg_vector_norm"}
    | {"adaptive_avg_pool1d", "avg_pool1d", "max_pool1d", "adaptive_max_pool1d"}
)
#: Operators that are too much for the host to do in silence.
HEAVY = frozenset(
    {"conv1d", "conv2d", "conv3d", "convolution", "conv_transpose2d", "lstm", "gru", "rnn_tanh"}
)
#: What to do instead, by the beginning of an operator's name.
HINTS = {
    "conv": "convolution in one or two directions only, and not transposed",
    "lstm": "no recurrent layers; use an encoder",
    "gru": "no recurrent layers; use an encoder",
    "pow": "write x * x, or use nn.LayerNorm instead of another normalisation",
    "rms_norm": "use nn.LayerNorm",
    "upsample": "no interpolation",
    "einsum": "write it with matmul and transpose",
    "group_norm": "use nn.LayerNorm, or nn.BatchNorm1d, which is folded",
    "exp": "use softmax",
    "_transformer_encoder_layer_fwd": "export with torch.backends.mha.set_fastpath_enabled(False)",
}
NO_HINT = "not supported on the chip; move it before its first operator or after its last"


@dataclass(frozen=True)
class Lowered:
    """The chip's part, and which nodes of the exported program the host runs.

    ``chip_inputs`` and ``masks`` are the nodes whose values feed the chip, by name;
    ``chip_outputs`` the nodes that the chip computes, one for every output of ``graph``.
    """

    graph: FloatGraph
    chip_inputs: dict[str, fx.Node]
    masks: dict[str, fx.Node]
    chip_outputs: tuple[fx.Node, ...]
    suffix: frozenset[fx.Node]


def lower(captured: Captured, config: Config) -> Lowered:
    """Split ``captured`` and lower the chip's part.

    Raises
    ------
    CompileError
        If operators that stand between those of the chip are not supported, all of them in one
        message; or if nothing is left for the chip.
    """
    first: CompileError | None = None
    for rows_first in (False, True):  # (batch, rows, channels) as usual, or (rows, batch, channels)
        try:
            return _lower(captured, config, rows_first)
        except CompileError as error:
            first = first or error
    raise first


def _lower(captured: Captured, config: Config, rows_first: bool) -> Lowered:
    trial = Builder(captured, config, rows_first)
    suffix = _suffix(captured, trial, evaluate(trial, None))
    chip = {n for n, v in trial.values.items() if not isinstance(v, Host | Elsewhere)} - suffix
    if not any(name_of(node) in ANCHORS for node in chip):
        raise CompileError("nothing runs on the chip: no linear, conv, matmul, attention or norm")
    final = Builder(captured, config, rows_first)
    evaluate(final, chip)
    outputs = tuple(
        node
        for node in captured.module.graph.nodes
        if node in chip and not isinstance(final.values[node], tuple) and _leaves(node, suffix)
    )
    graph = final.finish(outputs)
    return Lowered(
        graph,
        {name: final.input_nodes[name] for name in graph.inputs},
        {name: final.mask_nodes[name] for name in graph.masks},
        outputs,
        frozenset(suffix),
    )


def _leaves(node: fx.Node, suffix: Collection[fx.Node]) -> bool:
    """Whether the host needs the value of a node of the chip."""
    return any(user.op == "output" or user in suffix for user in node.users)


def evaluate(builder: Builder, chip: Collection[fx.Node] | None) -> dict[fx.Node, str]:
    """Evaluate the nodes of ``chip``; of None: all that the chip can do.

    Returns why the chip cannot run a node, for those whose operands it has.
    """
    failures: dict[fx.Node, str] = {}
    values = builder.values
    for node in builder.captured.module.graph.nodes:
        if node.op == "output":
            continue
        on_host = all(isinstance(values[n], Host) for n in node.all_input_nodes)
        on_host &= not (name_of(node) in ANCHORS and is_float(node))
        on_host &= not (chip is None and name_of(node) in HEAVY)
        if node.op != "call_function" or node in builder.captured.constants or on_host:
            values[node] = Host(node)
        elif chip is not None and node not in chip:
            values[node] = Elsewhere()
        else:
            values[node] = _value(builder, node, failures)
    return failures


def _value(builder: Builder, node: fx.Node, failures: dict[fx.Node, str]) -> Value:
    name = name_of(node)
    rule = _rule(name)
    if rule is None:
        hints = (hint for key, hint in HINTS.items() if name.startswith(key))
        failures[node] = next(hints, NO_HINT)
        return Elsewhere()
    if any(isinstance(builder.values[n], Elsewhere) for n in node.all_input_nodes):
        return Elsewhere()
    builder.node = node
    try:
        if name.endswith("_"):
            _check_in_place(node)
        args = fx.map_arg(node.args, builder.operand)
        kwargs = fx.map_arg(node.kwargs, builder.operand)
        return rule(builder, *args, **kwargs)
    except NoViewError as error:
        failures[node] = str(error)
        return Elsewhere()


def _rule(name: str) -> Callable[..., Value] | None:
    name = name if name.startswith("_") else name.rstrip("_")
    if name in UNARY:
        return lambda builder, x, *args, **kwargs: unary(builder, name, x, *args, **kwargs)
    if name in IDENTITIES:
        return lambda builder, x, *args, **kwargs: identity(builder, x, name, args)
    return RULES.get(name)


def _check_in_place(node: fx.Node) -> None:
    order = {n: i for i, n in enumerate(node.graph.nodes)}
    target: Any = node.args[0]
    if any(order[user] > order[node] for user in target.users):
        raise NoViewError("in-place operation on a value that is used again")


def _suffix(captured: Captured, trial: Builder, failures: dict[fx.Node, str]) -> set[fx.Node]:
    """Return the nodes that run on the host after the chip.

    Raises
    ------
    CompileError
        If a node that the chip cannot run stands before others of the chip.
    """
    nodes = [n for n in captured.module.graph.nodes if n.op == "call_function"]
    leads_to_anchor: dict[fx.Node, bool] = {}
    for node in reversed(nodes):
        leads_to_anchor[node] = any(
            name_of(u) in ANCHORS | HEAVY or leads_to_anchor.get(u, False) for u in node.users
        )
    bad = {
        node: reason
        for node, reason in failures.items()
        if name_of(node) in HEAVY | ANCHORS or (leads_to_anchor[node] and not _pools(node))
    }
    suffix = {n for n, v in trial.values.items() if isinstance(v, Elsewhere)}
    for node in reversed(nodes):  # what does not pay at the end of the chip's part
        pieces = list(node.users) if name_of(node) in PIECES and name_of(node) != "getitem" else []
        users = [user for piece in pieces or [node] for user in piece.users if user.op != "output"]
        if _movable(node, trial) and all(user in suffix for user in users):
            suffix |= {node, *pieces}  # several results move together
    for node in nodes:
        value = trial.values[node]
        heads = value.heads if isinstance(value, Scores) and node not in suffix else 0
        if heads > 1 and _leaves(node, suffix):
            bad[node] = "attention weights do not leave the chip: use need_weights=False"
    if bad:
        raise CompileError(_unsupported(bad, [node for node in failures if node not in bad]))
    return suffix


def _pools(node: fx.Node) -> bool:
    """Whether a node that the chip cannot run leaves rows out or sums over them."""
    if name_of(node) not in POOLING:
        return False
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    rank = len(shape_of(node.all_input_nodes[0]))
    listed = dims if isinstance(dims, list | tuple) else [dims]
    return all(d is None or not isinstance(d, int) or d % rank != rank - 1 for d in listed)


def _movable(node: fx.Node, trial: Builder) -> bool:
    """Whether the host may as well do ``node``, if nothing on the chip needs it."""
    value, name = trial.values[node], name_of(node)
    if isinstance(value, Host | Elsewhere | Scores) or name in ANCHORS:
        return False
    if name != "getitem" and any(name in rules for rules in (VIEWS, IDENTITIES, PADS, PIECES)):
        return True
    operands = [trial.values.get(n) for n in node.all_input_nodes]
    binary = name.rstrip("_") in ("add", "sub", "mul", "div", "neg")
    return binary and sum(isinstance(v, View) for v in operands) < 2


def _unsupported(bad: dict[fx.Node, str], others: Sequence[fx.Node]) -> str:
    lines = [f"{len(bad)} unsupported operator{'s' * (len(bad) > 1)}:"]
    lines += [f"  {path_of(n)}: {n.target} {shape_of(n)}: {why}" for n, why in bad.items()]
    others = [n for n in others if not _pools(n)]
    if others:
        lines.append("not on the chip either, but the host would run them after it:")
        lines += [f"  {path_of(n)}: {n.target} {shape_of(n)}" for n in others]
    return "\n".join(lines)
