"""Convolutional networks that the command line knows by name: random or trained here, and cached.

Any of them takes a state dict of its own instead, those of torchvision included.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from twillcore.cache import cached_file, content_key
from twillcore.errors import TwillcoreError
from twillcore.models.digits import load_digits
from twillcore.models.digits_cnn import DigitsCNN, planes, train_digits_cnn
from twillcore.models.images import digit, photograph, random_photograph
from twillcore.models.mobilenet_v2 import MobileNetV2
from twillcore.models.random_weights import randomise
from twillcore.models.resnet18 import ResNet18

Progress = Callable[[int, int, str], None]

VERSION = "1"  # of weights and training: change it and what is cached is made again
WEIGHT_SEED = 0
STATISTICS_SEEDS = range(1000, 1004)  # of the images that give batch norms their statistics
CALIBRATION_SEEDS = range(2000, 2008)
CALIBRATION_DIGITS = 64


@dataclass(frozen=True)
class VisionNetwork:
    """A network from one image (1, channels, height, width) to logits (1, classes).

    Attributes
    ----------
    build : return it without useful weights
    make : return it with weights, random or trained
    read : return a file as the network's input
    random : return an input by seed
    calibration : inputs to find the ranges of tensors with
    labelled : labelled test images (n, ..) and labels (n,); None if there are none
    """

    build: Callable[[], nn.Module]
    make: Callable[[Progress], nn.Module]
    read: Callable[[Path], Tensor]
    random: Callable[[int], Tensor]
    calibration: Callable[[], list[Tensor]]
    labelled: Callable[[], tuple[Tensor, Tensor]] | None = None


def _random_network(build: Callable[[], nn.Module]) -> Callable[[Progress], nn.Module]:
    def make(progress: Progress) -> nn.Module:
        module = build()
        images = torch.cat([random_photograph(seed) for seed in STATISTICS_SEEDS])
        randomise(module, WEIGHT_SEED, images)
        return module

    return make


def _test_digits() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    return planes(digits.test), digits.test_labels


def _random_digit(seed: int) -> Tensor:
    images, _ = _test_digits()
    return images[seed % len(images)][None]


def _photographs() -> list[Tensor]:
    return [random_photograph(seed) for seed in CALIBRATION_SEEDS]


VISION_NETWORKS = {
    "resnet18": VisionNetwork(
        ResNet18, _random_network(ResNet18), photograph, random_photograph, _photographs
    ),
    "mobilenetv2": VisionNetwork(
        MobileNetV2, _random_network(MobileNetV2), photograph, random_photograph, _photographs
    ),
    "digits-cnn": VisionNetwork(
        DigitsCNN,
        lambda progress: train_digits_cnn(progress=progress),
        digit,
        _random_digit,
        lambda: list(planes(load_digits().train[:CALIBRATION_DIGITS]).split(1)),
        _test_digits,
    ),
}


def load_vision_network(
    name: str,
    weights: Path | None = None,
    progress: Progress = lambda done, total, text: None,
) -> nn.Module:
    """Return a network ready for inference; ``weights`` is a file with a state dict of it.

    Without, weights come from the cache, or are made.

    Raises
    ------
    TwillcoreError
        If the file is no state dict of this network.
    """
    network = VISION_NETWORKS[name]

    def make(path: Path) -> None:
        torch.save(network.make(progress).state_dict(), path)

    file = weights or cached_file(name, content_key(name, VERSION), ".pt", make)
    module = network.build()
    try:
        module.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    except (OSError, RuntimeError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise TwillcoreError(f"{file}: no weights of {name}: {reason}") from None
    return module.eval().requires_grad_(False)
