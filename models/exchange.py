"""Models that other libraries have pruned or quantised, as plain modules that the compiler reads.

None of those libraries is imported: what they leave in a module is known by its form. Sparsity and
coarse grids are found again in the plain weights, without annotation.
"""

import copy
import warnings

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from twillcore.errors import TwillcoreError
from twillcore.models.plain import remove_parametrisations


def is_foreign(module: nn.Module) -> bool:
    """Return whether :func:`plain` has anything to do."""
    if isinstance(module, torch.fx.GraphModule) and any(map(_dequantises, module.graph.nodes)):
        return True
    return any(
        parametrize.is_parametrized(child)
        or callable(getattr(child, "quant_weight", None))
        or any(isinstance(h, prune.BasePruningMethod) for h in child._forward_pre_hooks.values())
        or any(map(_is_quantised, child.parameters(recurse=False)))
        for child in module.modules()
    )


def plain(module: nn.Module) -> nn.Module:
    """Return a copy of ``module`` with plain weights.

    Understood: masks of ``torch.nn.utils.prune``; parametrisations; weights that are tensor
    subclasses with ``dequantize()`` (torchao's weight-only); layers with ``quant_weight()``
    (brevitas); graphs in which weights pass through a ``dequantize`` (pt2e).

    Raises
    ------
    TwillcoreError
        If a weight is not finite afterwards; all such are named.
    """
    for child in module.modules():  # a pruned weight is the result of a product: no copy of those
        for key, value in vars(child).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                vars(child)[key] = value.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, of exported graphs
        module = copy.deepcopy(module)
    for name, child in list(module.named_modules()):
        _remove_masks(child)
        if parametrize.is_parametrized(child):
            remove_parametrisations(child)
        _dequantise_parameters(child)
        if callable(getattr(child, "quant_weight", None)):
            replacement = _from_quantised_layer(name, child)
            if not name:
                module = replacement
            else:
                parent, _, last = name.rpartition(".")
                setattr(module.get_submodule(parent), last, replacement)
    if isinstance(module, torch.fx.GraphModule):
        module = torch.fx.GraphModule(module, module.graph)  # an exported one refuses eval()
        _fold_dequantised(module)
    wrong = [n for n, p in module.named_parameters() if not p.isfinite().all()]
    if wrong:
        raise TwillcoreError(f"weights with NaN or infinity: {', '.join(wrong)}")
    return module


def _remove_masks(layer: nn.Module) -> None:
    for hook in list(layer._forward_pre_hooks.values()):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(layer, hook._tensor_name)


def _is_quantised(parameter: Tensor) -> bool:
    return type(parameter.data) is not Tensor and hasattr(parameter, "dequantize")


def _dequantises(node: torch.fx.Node) -> bool:
    return node.op == "call_function" and "dequantize" in str(node.target)


def _dequantise_parameters(layer: nn.Module) -> None:
    for name, parameter in list(layer.named_parameters(recurse=False)):
        if _is_quantised(parameter):
            value = parameter.dequantize().detach().clone()
            setattr(layer, name, nn.Parameter(value, requires_grad=False))


def _from_quantised_layer(name: str, layer: nn.Module) -> nn.Module:
    """Return the torch layer that a brevitas one is, with its weights on their grid."""
    quantised = layer.quant_weight()
    integers = quantised.int() if callable(quantised.int) else quantised.int
    zero = getattr(quantised, "zero_point", None)
    if zero is not None and bool(torch.as_tensor(zero).any()):
        raise TwillcoreError(f"{name}: weights have a zero point; the chip's are symmetric")
    weight = (integers.to(torch.float32) * quantised.scale).detach()
    for kind in (nn.Linear, nn.Conv1d, nn.Conv2d):
        if isinstance(layer, kind):
            break
    else:
        raise TwillcoreError(f"{name}: no plain layer for {type(layer).__name__}")
    if kind is nn.Linear:
        new: nn.Module = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    else:
        new = kind(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride,
            layer.padding, layer.dilation, layer.groups, layer.bias is not None,
        )  # fmt: skip
    with torch.no_grad():
        new.weight.copy_(weight)
        if layer.bias is not None:
            new.bias.copy_(layer.bias)
    return new.train(layer.training).requires_grad_(False)


@torch.no_grad()
def _fold_dequantised(graph_module: torch.fx.GraphModule) -> None:
    """Evaluate what depends on no input; drop quantise-dequantise pairs of activations.

    So weights are what ``dequantize`` makes of them, whatever was computed before. The compiler
    calibrates activations itself.
    """
    graph = graph_module.graph
    values: dict[torch.fx.Node, object] = {}
    for node in list(graph.nodes):
        sources = node.all_input_nodes
        if node.op == "get_attr":
            values[node] = _attribute(graph_module, node.target).clone()
        elif node.op == "call_function" and all(source in values for source in sources):
            arguments, options = torch.fx.node.map_arg((node.args, node.kwargs), values.get)
            values[node] = node.target(*arguments, **options)
        elif _dequantises(node) and "quantize" in str(getattr(sources[0], "target", "")):
            node.replace_all_uses_with(sources[0].all_input_nodes[0])
    for node, value in values.items():
        users = [user for user in node.users if user not in values]
        if node.op == "get_attr" or not users or not isinstance(value, Tensor):
            continue
        name = f"folded_{node.name}"
        graph_module.register_parameter(name, nn.Parameter(value, requires_grad=False))
        with graph.inserting_before(node):
            folded = graph.get_attr(name)
        node.replace_all_uses_with(folded, delete_user_cb=lambda user: user not in values)
    for node in reversed(values):  # some write to their arguments, which seem to be of use
        if not node.users:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()


def _attribute(module: nn.Module, path: str) -> Tensor:
    value: object = module
    for part in path.split("."):
        value = getattr(value, part)
    return value
