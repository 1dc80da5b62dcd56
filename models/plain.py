"""Parametrised weights as plain ones."""

import torch
from torch import nn


@torch.no_grad()
def remove_parametrisations(layer: nn.Module) -> None:
    """Keep what the parametrisations of ``layer`` make now, as plain parameters, in place.

    ``torch.nn.utils.parametrize.remove_parametrizations`` changes the class of the layer, which
    copies of it share: removed from a copy, the original breaks. This does not.
    """
    found = [
        (name, getattr(layer, name).clone(), entry.original.requires_grad)
        for name, entry in layer.parametrizations.items()
    ]
    del layer.parametrizations
    layer.__class__ = type(layer).__bases__[0]
    for name, value, trained in found:
        setattr(layer, name, nn.Parameter(value, requires_grad=trained))
