"""A torch module to an exported program: one straight graph, static shapes, folded constants."""

import math
import operator
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from twillcore.compiler.errors import CompileError

#: Functions of one argument that become a table: every one of them is ``torch.ops.aten.<name>``.
UNARY = frozenset(
    {"gelu", "silu", "sigmoid", "tanh", "relu", "elu", "leaky_relu", "hardtanh", "relu6", "celu"}
    | {"hardswish", "hardsigmoid", "softplus", "mish", "erf", "selu", "abs"}
)


@dataclass(frozen=True)
class Captured:
    """An exported module.

    ``constants`` holds the value of every node that depends on no input, folded; ``inputs`` are the
    placeholders of the user's inputs in their order, ``outputs`` the nodes (or plain values) that
    are returned. ``example`` are the inputs with which it was exported, ``layers`` the paths of all
    modules with parameters.
    """

    module: fx.GraphModule
    constants: dict[fx.Node, Any]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[Any, ...]
    example: tuple[Tensor, ...]
    layers: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = []
        for node in self.module.graph.nodes:
            if node.op == "get_attr" or node in self.constants:
                continue
            lines.append(f"{node.name}: {shape_of(node)} = {node.target} {node.args} {node.kwargs}")
        return "\n".join(lines)


def capture(
    module: nn.Module | torch.export.ExportedProgram, example_inputs: Sequence[Tensor]
) -> Captured:
    """Export ``module`` (a module, or what ``torch.export.load`` returned).

    Raises
    ------
    CompileError
        If the module cannot be exported, has dynamic shapes or dimensions of size zero, or NaN or
        infinite weights; each message lists all places.
    """
    example = tuple(example_inputs)
    _check_examples(example)
    exported = module
    if not isinstance(module, torch.export.ExportedProgram):
        exported = _export(module, example)
    graph_module = exported.module(check_guards=False)
    graph_module.graph.eliminate_dead_code()
    _check_shapes(graph_module)
    _check_weights(exported)
    nodes = graph_module.graph.nodes
    output = next(node for node in reversed(nodes) if node.op == "output")
    captured = Captured(
        graph_module,
        _fold_constants(graph_module),
        tuple(node for node in nodes if node.op == "placeholder"),
        tuple(torch.utils._pytree.tree_leaves(output.args[0])),
        example,
        tuple(dict.fromkeys(name.rpartition(".")[0] for name in exported.state_dict)),
    )
    if len(captured.inputs) != len(example):
        raise CompileError(
            f"the module takes {len(captured.inputs)} tensors, {len(example)} example inputs given"
        )
    wrong = [
        f"{node.name} must be {shape_of(node)}, not {list(value.shape)}"
        for node, value in zip(captured.inputs, example, strict=True)
        if shape_of(node) != list(value.shape)
    ]
    if wrong:
        raise CompileError("example inputs: " + "; ".join(wrong))
    return captured


def _export(module: nn.Module, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    was_training = module.training
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it would hide a layer in one opaque operator
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about attributes that hooks assign, as of pruning
            return torch.export.export(module.eval(), example)
    except Exception as error:  # torch.export raises many kinds, and their text is the reason
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CompileError(f"torch.export cannot capture the module: {reason[0]}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        module.train(was_training)


def _check_examples(example: tuple[Tensor, ...]) -> None:
    problems = []
    for i, value in enumerate(example):
        if not isinstance(value, Tensor):
            problems.append(f"input {i} must be a tensor, not {type(value).__name__}")
        elif 0 in value.shape:
            problems.append(f"input {i} has a dimension of size zero: {list(value.shape)}")
    if problems:
        raise CompileError("example inputs: " + "; ".join(problems))


def _check_shapes(module: fx.GraphModule) -> None:
    dynamic, empty = [], []
    for node in module.graph.nodes:
        for value in _values(node):
            if not all(isinstance(n, int) for n in value.shape):
                dynamic.append(f"{path_of(node)}: {node.name} {[str(n) for n in value.shape]}")
            elif 0 in value.shape:
                empty.append(f"{path_of(node)}: {node.name} {list(value.shape)}")
    if dynamic:
        raise CompileError(
            "dynamic shapes are not supported; export without dynamic_shapes, one program per"
            " shape. Dynamic are: " + "; ".join(dynamic[:20])
        )
    if empty:
        raise CompileError("dimensions of size zero: " + "; ".join(empty[:20]))


def _check_weights(exported: torch.export.ExportedProgram) -> None:
    problems = []
    for name, value in exported.state_dict.items():
        if value.is_floating_point() and (bad := int((~torch.isfinite(value)).sum())):
            problems.append(f"{name}: {bad} of {value.numel()}")
    if problems:
        raise CompileError("NaN or infinite weights: " + "; ".join(problems))


def _fold_constants(module: fx.GraphModule) -> dict[fx.Node, Any]:
    """Compute every node that depends on no input."""
    constants: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value = operator.attrgetter(node.target)(module)
            constants[node] = value.detach() if isinstance(value, Tensor) else value
        elif node.op == "call_function" and all(n in constants for n in node.all_input_nodes):
            copy = name_of(node).endswith("_")  # in place: leave the operand alone

            def value_of(n: fx.Node, copy: bool = copy) -> Any:
                return constants[n].clone() if copy else constants[n]

            args = fx.map_arg(node.args, value_of)
            kwargs = fx.map_arg(node.kwargs, value_of)
            with torch.no_grad():
                constants[node] = node.target(*args, **kwargs)
    return constants


def _values(node: fx.Node) -> Iterator[Tensor]:
    value = node.meta.get("val")
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, Tensor):
            yield item


def shape_of(node: fx.Node) -> list[int]:
    """Return the shape of a node's tensor (of the first, if it has several)."""
    return next((list(value.shape) for value in _values(node)), [])


def is_float(node: fx.Node) -> bool:
    """Whether a node's value is a tensor of real numbers."""
    return any(value.is_floating_point() for value in _values(node))


def name_of(node: fx.Node) -> str:
    """Return the bare name of a node's operator: ``linear`` for ``aten.linear.default``."""
    if node.target is operator.getitem:
        return "getitem"
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[-1] if schema else getattr(node.target, "__name__", "?")


def path_of(node: fx.Node) -> str:
    """Return the path of the module that a node belongs to."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    return path.removeprefix("L['self'].").removeprefix("L['self']") or "(top)"


def count(shape: Sequence[int]) -> int:
    """Elements of a tensor of ``shape``."""
    return math.prod(shape)
