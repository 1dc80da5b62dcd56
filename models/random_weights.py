"""Random weights with which a network behaves as a trained one: nothing dies, nothing explodes.

For speed and bit-exactness the values of weights do not count, but the ranges of tensors do.
"""

import torch
from torch import Tensor, nn

SCALE, SHIFT = (0.5, 1.5), 0.2  # of batch norms: uniform between, standard deviation


@torch.no_grad()
def randomise(module: nn.Module, seed: int, images: Tensor) -> None:
    """Give ``module`` random weights by ``seed``, in place, and leave it ready for inference.

    Weights are normal, scaled by their inputs (He et al. 2015, arXiv 1502.01852). Batch norms get
    the statistics that ``images`` (batch, channels, height, width) have there.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = []
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        elif isinstance(layer, nn.Linear):
            layer.weight.normal_(0.0, layer.in_features**-0.5, generator=generator)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.weight.uniform_(*SCALE, generator=generator)
            layer.bias.normal_(0.0, SHIFT, generator=generator)
            norms.append(layer)
        bias = getattr(layer, "bias", None)
        if bias is not None and layer not in norms:
            bias.zero_()
    momenta = [layer.momentum for layer in norms]
    module.eval()
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # the average of all, and not of the initial 0 and 1
        layer.train()
    module(images)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    module.eval().requires_grad_(False)
