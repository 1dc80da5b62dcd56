"""What a layer costs on the chip, in closed form: cycles of the GEMM core, bytes of weights.

These are the costs to *choose* by. What a chosen network takes is measured by the cycle engine,
which also knows memory traffic, dependences and everything that is no GEMM.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from twillcore.config import Config
from twillcore.isa import WeightFormat
from twillcore.models.layout import as_rows, sparse_layers
from twillcore.weights import encoded_rows, smallest_format, weight_row_bytes


@dataclass(frozen=True)
class LayerShape:
    """A layer as a matrix product: ``rows`` x ``inputs`` by ``inputs`` x ``outputs``."""

    name: str
    rows: int
    inputs: int
    outputs: int

    @property
    def weights(self) -> int:
        """Number of weights when dense."""
        return self.inputs * self.outputs

    def cycles(self, config: Config, beats: int) -> int:
        """Return row tiles * column tiles * blocks * beats, with ``beats`` kept of every block."""
        return math.ceil(self.rows / config.lanes) * self._weight_rows(config, beats)

    def low_rank_cycles(self, config: Config, rank: int) -> int:
        """Return the cycles of the two dense products that factors of ``rank`` make."""
        first = LayerShape(self.name, self.rows, self.inputs, rank)
        second = LayerShape(self.name, self.rows, rank, self.outputs)
        return sum(shape.cycles(config, config.block) for shape in (first, second))

    def bytes(self, config: Config, beats: int, bits: int = 8) -> int:
        """Return the bytes of the weights in the smallest format, positions included.

        ``bits`` scales the weights' share; positions stay as they are.
        """
        rows = self._weight_rows(config, beats)
        form = smallest_format(beats, config)
        positions = (
            0 if form is WeightFormat.DENSE else encoded_rows(rows, beats, form, config) - rows
        )
        return math.ceil((rows * bits / 8 + positions) * weight_row_bytes(config))

    def _weight_rows(self, config: Config, beats: int) -> int:
        tiles = math.ceil(self.outputs / config.dsp_columns)
        return tiles * math.ceil(self.inputs / config.block) * beats


@torch.no_grad()
def layer_shapes(module: nn.Module, example_inputs: Sequence[Tensor]) -> dict[str, LayerShape]:
    """Run ``module`` once and return its linear and convolution layers that took part, by name.

    Rows are tokens or output positions, times the batch; a layer that is called more than once
    counts every call.
    """
    shapes: dict[str, LayerShape] = {}
    names = {layer: name for name, layer in sparse_layers(module).items()}

    def note(layer: nn.Module, _: object, out: Tensor) -> None:
        name = names[layer]
        outputs = layer.weight.shape[0]
        inputs = as_rows(layer.weight).numel() // outputs
        before = shapes[name].rows if name in shapes else 0
        shapes[name] = LayerShape(name, before + out.numel() // outputs, inputs, outputs)

    handles = [layer.register_forward_hook(note) for layer in names]
    try:
        module(*example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return shapes
