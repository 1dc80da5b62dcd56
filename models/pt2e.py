"""Quantisation by PyTorch 2 export (``torchao``'s pt2e) with the arithmetic of the chip.

Post-training::

    exported = torch.export.export(module, example).module()
    prepared = prepare_pt2e(exported, ChipQuantizer(bits={"encoder.0": 4}))
    prepared(*calibration)
    program = twillcore.compile(convert_pt2e(prepared), example)

Trained: ``prepare_qat_pt2e`` with ``ChipQuantizer(training=True)``, some steps of any optimiser,
then the same. What is converted goes to :func:`twillcore.compile` as it is; ranges of activations
are the compiler's, from its calibration inputs. Needs the extra ``compression``.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e import (
    FakeQuantize,
    MinMaxObserver,
    PerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
)

from twillcore.errors import TwillcoreError
from twillcore.models.qat import row_scales

_LAYERS = frozenset(
    {torch.ops.aten.linear.default, torch.ops.aten.conv1d.default, torch.ops.aten.conv2d.default}
)
_ANNOTATION = "quantization_annotation"  # the key in which pt2e looks


class RowScaleObserver(PerChannelMinMaxObserver):
    """Sees a weight (outputs, ...), and answers the scale per row that the compiler would find."""

    def forward(self, x_orig: Tensor) -> Tensor:
        """Keep what :meth:`calculate_qparams` needs."""
        super().forward(x_orig)
        self._scale = row_scales(
            x_orig.detach().reshape(len(x_orig), -1), (self.quant_max + 1).bit_length()
        )[:, 0]
        return x_orig

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scales and zero points (all 0) of the rows."""
        return self._scale, torch.zeros(len(self._scale), dtype=torch.int64)


class ChipQuantizer(Quantizer):
    """Annotates linear and convolution layers: weights of 2..8 bits per row, int8 inputs.

    All is symmetric, so zeros of a sparse weight stay zeros.

    Parameters
    ----------
    bits : of the weights, for all layers or by name for some, the others having 8
    training : for ``prepare_qat_pt2e``: round in the forward, straight through back

    Raises
    ------
    TwillcoreError
        If bits are not 2..8; when annotating, if a name is of no such layer: all of them are named.
    """

    def __init__(self, bits: int | Mapping[str, int] = 8, training: bool = False) -> None:
        super().__init__()
        self._default = 8 if isinstance(bits, Mapping) else bits
        self._named = dict(bits) if isinstance(bits, Mapping) else {}
        wrong = {b for b in (self._default, *self._named.values()) if not 2 <= b <= 8}
        if wrong:
            raise TwillcoreError(f"bits must be 2..8, not {', '.join(map(str, sorted(wrong)))}")
        self._training = training

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Say for every layer how its input and weight are quantised."""
        unknown = dict(self._named)
        for node in model.graph.nodes:
            if node.op != "call_function" or node.target not in _LAYERS:
                continue
            name = _layer_of(node)
            bits = self._named.get(name, self._default)
            unknown.pop(name, None)
            node.meta[_ANNOTATION] = QuantizationAnnotation(
                {node.args[0]: self._activations(), node.args[1]: self._weights(bits)},
                _annotated=True,
            )
        if unknown:
            raise TwillcoreError(f"no linear or convolution layer: {', '.join(sorted(unknown))}")
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Accept what :meth:`annotate` made."""

    def _weights(self, bits: int) -> QuantizationSpec:
        limit = (1 << (bits - 1)) - 1
        return self._spec(RowScaleObserver, limit, torch.per_channel_symmetric, 0)

    def _activations(self) -> QuantizationSpec:
        return self._spec(MinMaxObserver, 127, torch.per_tensor_symmetric, None)

    def _spec(self, observer, limit: int, scheme: torch.qscheme, axis: int | None):
        form = {"dtype": torch.int8, "quant_min": -limit, "quant_max": limit, "qscheme": scheme}
        if axis is not None:
            form["ch_axis"] = axis
        constructor = observer.with_args(eps=2**-20, **form)
        if self._training:
            constructor = FakeQuantize.with_args(observer=observer, **form)
        return QuantizationSpec(observer_or_fake_quant_ctr=constructor, **form)


def _layer_of(node: fx.Node) -> str:
    """Return the path of the layer that a node of an exported graph is."""
    weight = node.args[1]
    while weight.op != "get_attr" and weight.all_input_nodes:  # a parametrisation makes it
        weight = weight.all_input_nodes[0]
    return str(weight.target).partition(".parametrizations.")[0].removesuffix(".weight")
