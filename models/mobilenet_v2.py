"""MobileNet-V2 (Sandler et al. 2018, arXiv 1801.04381) in plain torch, named as in torchvision.

A state dict of ``torchvision.models.mobilenet_v2`` loads as it is.
"""

from torch import Tensor, nn
from torch.nn import functional

CLASSES = 1000
STEM, HEAD = 32, 1280  # channels of the first and the last convolution
#: Stages of blocks: how much they widen inside, their outputs, their number, the first's stride.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Return convolution, batch norm and ReLU6."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Widen by 1 x 1, filter channels by 3 x 3, narrow by 1 x 1; added to the input if alike."""

    def __init__(self, inputs: int, outputs: int, stride: int, widen: int) -> None:
        super().__init__()
        inside = inputs * widen
        self.conv = nn.Sequential(
            *([_conv(inputs, inside, 1)] if widen != 1 else []),
            _conv(inside, inside, 3, stride, groups=inside),
            nn.Conv2d(inside, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """Images (batch, 3, height, width), 224 x 224 as published, to logits (batch, classes)."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, STEM, 3, stride=2)]
        channels = STEM
        for widen, outputs, count, stride in STAGES:
            for number in range(count):
                step = stride if number == 0 else 1
                layers.append(InvertedResidual(channels, outputs, step, widen))
                channels = outputs
        layers.append(_conv(channels, HEAD, 1))
        self.features = nn.Sequential(*layers)
        # dropout has no effect in inference, but a place: the linear layer is number 1
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(HEAD, classes))

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(pooled.flatten(1))
