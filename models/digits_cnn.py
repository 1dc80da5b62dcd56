"""A convolutional network for 8 x 8 digits, small, with everything that larger ones have.

Full, pointwise and depthwise convolution, stride 2, a residual block of either kind (ReLU and
ReLU6), overlapping max pooling with padding, global average pooling. Trained in seconds.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from twillcore.models.digits import load_digits
from twillcore.models.digits_vit import accuracy, fit
from twillcore.models.mobilenet_v2 import InvertedResidual
from twillcore.models.resnet18 import BasicBlock

CLASSES = 10
EPOCHS, RATE = 40, 5e-3

Progress = Callable[[int, int, str], None]


class DigitsCNN(nn.Module):
    """Images (batch, 1, 8, 8) to logits (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.basic = BasicBlock(16, 16, 1)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.inverted = InvertedResidual(16, 16, 1, 3)
        self.down = BasicBlock(16, 48, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.basic(self.stem(x)))
        x = self.down(self.inverted(x))
        return self.fc(self.avgpool(x).flatten(1))


def planes(images: Tensor) -> Tensor:
    """Return images (n, 8, 8) as (n, 1, 8, 8)."""
    return images[:, None]


def train_digits_cnn(
    seed: int = 0,
    epochs: int = EPOCHS,
    progress: Progress = lambda done, total, text: None,
) -> DigitsCNN:
    """Return a trained network, ready for inference."""
    torch.manual_seed(seed)
    module = DigitsCNN()
    fit(module, load_digits(), epochs, RATE, seed, progress=progress, view=planes)
    return module.eval().requires_grad_(False)


def digits_accuracy(module: nn.Module) -> float:
    """Return the share of the test digits that ``module`` recognises, 0..1."""
    return accuracy(module, load_digits(), planes)
