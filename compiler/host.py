"""The host's part: what stands before and after the chip, and the conversion of numbers between.

Prefix and suffix are programs of ``torch.export``, saved with the image, so that a program file is
complete. :class:`Interface` says how their tensors become the chip's integers and back.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from twillcore.compiler.capture import Captured, name_of, path_of, shape_of
from twillcore.compiler.errors import CompileError
from twillcore.compiler.float_graph import FloatGraph, Layout, MaskInput
from twillcore.compiler.graph import Graph
from twillcore.compiler.lower import Lowered
from twillcore.compiler.rules_product import EXCLUDED


@dataclass(frozen=True)
class HostInput:
    """An input of the module: its name, shape and dtype (as ``"float32"``)."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class ChipTensor:
    """An integer tensor of the chip and its layout in the framework.

    ``real = integer * scale * 2**channel_shift[c]``; ``bits`` is 8 or 16.
    """

    name: str
    source: str
    layout: Layout
    shape: tuple[int, int, int]
    bits: int
    scale: float
    channel_shift: tuple[int, ...] = ()

    def quantise(self, value: NDArray) -> NDArray[np.int64]:
        """Return integers (batch, rows, channels) for a tensor of the framework."""
        real = self.layout.from_framework(value, self.shape).astype(np.float64)
        limit = (1 << (self.bits - 1)) - 1
        return np.clip(np.rint(real / self._unit()), -limit, limit).astype(np.int64)

    def dequantise(self, value: NDArray) -> NDArray[np.float32]:
        """Return a tensor of the framework for integers (batch, rows, channels)."""
        return self.layout.to_framework((value * self._unit()).astype(np.float32))

    def _unit(self) -> NDArray[np.float64]:
        return self.scale * 2.0 ** np.asarray(self.channel_shift or (0,), np.float64)


@dataclass(frozen=True)
class ChipMask:
    """A mask input of the chip, and the mask of the framework that it is made of."""

    name: str
    source: MaskInput


@dataclass(frozen=True)
class Interface:
    """How the prefix's results become chip inputs, and chip outputs the suffix's arguments.

    The prefix returns the tensors ``sources`` (chip inputs, then masks), then ``passed`` ones that
    the suffix takes after the chip's outputs.
    """

    inputs: tuple[HostInput, ...]
    sources: tuple[str, ...]
    chip_inputs: tuple[ChipTensor, ...]
    masks: tuple[ChipMask, ...]
    chip_outputs: tuple[ChipTensor, ...]
    passed: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """Return the interface as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Interface":
        """Read what :meth:`to_json` wrote."""
        fields = json.loads(data)

        def layout(d: dict) -> Layout:
            return Layout(
                *(tuple(d[key]) for key in ("sizes", "order", "shape")),
                tuple(map(tuple, d["padding"])),
                tuple(d["channels"]),
            )

        def tensor(d: dict) -> ChipTensor:
            shift = tuple(d["channel_shift"])
            return ChipTensor(
                **{**d, "layout": layout(d["layout"]), "shape": tuple(d["shape"]),
                   "channel_shift": shift}
            )  # fmt: skip

        def mask(d: dict) -> ChipMask:
            source = MaskInput(**{**d["source"], "layout": layout(d["source"]["layout"])})
            return ChipMask(d["name"], source)

        return cls(
            inputs=tuple(HostInput(d["name"], tuple(d["shape"]), d["dtype"])
                         for d in fields["inputs"]),
            sources=tuple(fields["sources"]),
            chip_inputs=tuple(tensor(d) for d in fields["chip_inputs"]),
            masks=tuple(mask(d) for d in fields["masks"]),
            chip_outputs=tuple(tensor(d) for d in fields["chip_outputs"]),
            passed=fields["passed"],
            notes=tuple(fields["notes"]),
        )  # fmt: skip


def keep_mask(mask: MaskInput, value: NDArray) -> NDArray[np.bool_]:
    """Return (batch, 1, keys), true for the keys that ``value`` does not exclude.

    Raises
    ------
    ValueError
        If the mask differs between rows or heads, or adds anything but 0 or a very negative number.
    """
    if mask.kind == "additive":
        keep = value > EXCLUDED
        if (value[keep] != 0).any():
            raise ValueError(
                f"an additive mask must be 0 or below {EXCLUDED:g}: biases in the scores of an"
                " attention are not supported"
            )
    else:
        keep = value.astype(bool) ^ (mask.kind == "drop")
    full = mask.layout.from_framework(keep, (mask.batch, mask.heads, mask.rows, mask.keys))
    keys = full[:, :1, :1]
    if (full != keys).any():
        raise ValueError(
            "the mask of an attention must be the same for all rows and heads (padding of keys);"
            " causal masks are not supported"
        )
    return keys[:, 0].copy()


@dataclass(frozen=True)
class HostPrograms:
    """Prefix and suffix as modules, and the names of what the prefix returns."""

    prefix: fx.GraphModule
    suffix: fx.GraphModule
    sources: tuple[str, ...]
    passed: int
    notes: tuple[str, ...]


def split_host(captured: Captured, lowered: Lowered) -> HostPrograms:
    """Cut prefix and suffix out of the exported program."""
    sources = {**lowered.chip_inputs, **lowered.masks}
    chip = set(lowered.chip_outputs)
    constants = captured.constants
    passed: list[fx.Node] = []

    def on_host_before(node: fx.Node) -> bool:
        return node not in constants and node not in lowered.suffix and node not in chip

    suffix = fx.Graph()
    copies = {node: suffix.placeholder(f"chip_{node.name}") for node in lowered.chip_outputs}
    returned = [node for node in captured.outputs if isinstance(node, fx.Node)]
    order = _closure(returned, stop=lambda n: n in chip or on_host_before(n))
    for node in order:
        if node not in chip and on_host_before(node):
            passed.append(node)
            copies[node] = suffix.placeholder(f"passed_{node.name}")
    for node in order:
        if node not in copies:
            copies[node] = suffix.node_copy(node, lambda n: copies[n])
    results = tuple(copies[n] if isinstance(n, fx.Node) else n for n in captured.outputs)
    suffix.output(results)

    prefix = fx.Graph()
    copies = {node: prefix.placeholder(node.name) for node in captured.inputs}
    wanted = [*sources.values(), *passed]
    for node in _closure(wanted, stop=lambda n: n in copies):
        if node not in copies:
            copies[node] = prefix.node_copy(node, lambda n: copies[n])
    prefix.output(tuple(copies[node] for node in wanted))
    notes = (*_notes("before the chip", prefix, captured), *_notes("after it", suffix, captured))
    return HostPrograms(
        _module(captured, prefix), _module(captured, suffix), tuple(sources), len(passed), notes
    )


def _closure(nodes: Sequence[fx.Node], stop: Callable[[fx.Node], bool]) -> list[fx.Node]:
    """Return ``nodes`` and what they need, in the order of the graph, up to ``stop`` nodes."""
    seen: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            if not stop(node):
                pending += node.all_input_nodes
    if not seen:
        return []
    return [node for node in next(iter(seen)).graph.nodes if node in seen]


def _module(captured: Captured, graph: fx.Graph) -> fx.GraphModule:
    graph.lint()
    return fx.GraphModule(captured.module, graph)


def _notes(where: str, graph: fx.Graph, captured: Captured) -> list[str]:
    return [
        f"host, {where}: {path_of(node)}: {name_of(node)} {shape_of(node)}"
        for node in graph.nodes
        if node.op == "call_function"
    ]


def interface_of(
    captured: Captured, source: FloatGraph, graph: Graph, programs: HostPrograms
) -> Interface:
    """Return the interface between the host programs and the integer ``graph``."""

    def chip(form: str, name: str, layout: Layout, factor: float = 1.0) -> ChipTensor:
        tensor = graph.tensors[form]
        shift = () if tensor.channel_shift is None else tuple(map(int, tensor.channel_shift))
        scale = tensor.scale * factor
        return ChipTensor(form, name, layout, tensor.shape, tensor.bits, scale, shift)

    wide = ".wide"
    return Interface(
        inputs=tuple(
            HostInput(str(node.target), tuple(value.shape), str(value.dtype).removeprefix("torch."))
            for node, value in zip(captured.inputs, captured.example, strict=True)
        ),
        sources=programs.sources,
        chip_inputs=tuple(
            chip(form, name, source.inputs[name])
            for form in graph.inputs
            for name in [form if form in source.inputs else form.removesuffix(wide)]
        ),
        masks=tuple(
            ChipMask(name, source.masks[mask]) for name, mask in graph.notes["masks"].items()
        ),
        chip_outputs=tuple(
            chip(name + wide if name + wide in graph.outputs else name, name, layout, factor)
            for name, layout, factor in source.outputs
        ),
        passed=programs.passed,
        notes=programs.notes,
    )


def save_module(module: fx.GraphModule, example: tuple[Tensor, ...]) -> bytes:
    """Return ``module`` as bytes of ``torch.export.save``."""
    with torch.no_grad():
        exported = torch.export.export(module, example)
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    return buffer.getvalue()


def load_module(data: bytes) -> torch.nn.Module:
    """Read what :func:`save_module` wrote."""
    return torch.export.load(io.BytesIO(data)).module(check_guards=False)


def chip_samples(
    programs: HostPrograms, source: FloatGraph, inputs: Sequence[tuple[Tensor, ...]]
) -> list[tuple[dict[str, NDArray], dict[str, NDArray]]]:
    """Run the prefix on every tuple of ``inputs``; return chip inputs and masks, as numpy.

    Raises
    ------
    CompileError
        If a mask is none that the chip knows.
    """
    samples = []
    for values in inputs:
        with torch.no_grad():
            results = dict(zip(programs.sources, programs.prefix(*values), strict=False))
        chip = {
            name: layout.from_framework(
                results[name].detach().float().numpy(), source.tensors[name].shape
            ).astype(np.float32)
            for name, layout in source.inputs.items()
        }
        try:
            masks = {n: keep_mask(m, results[n].numpy()) for n, m in source.masks.items()}
        except ValueError as error:
            raise CompileError(str(error)) from None
        samples.append((chip, masks))
    return samples


def chip_arguments(
    interface: Interface, results: Sequence[Tensor]
) -> tuple[dict[str, NDArray], Mapping[str, NDArray]]:
    """Return the chip's integer inputs and masks, for what the prefix returned."""
    values = dict(zip(interface.sources, results, strict=False))
    integers = {
        t.name: t.quantise(values[t.source].detach().float().numpy()) for t in interface.chip_inputs
    }
    masks = {m.name: keep_mask(m.source, values[m.source.name].numpy()) for m in interface.masks}
    return integers, masks
