"""Images as a network takes them: from a file, or random by a seed.

Files are prepared as torchvision prepares them for its networks: the shorter side scaled to 256,
the middle 224 x 224 cut out, colours around 0 by the mean and deviation of ImageNet.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from twillcore.errors import TwillcoreError

SCALED, SIDE = 256, 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FORMATS = ("PNG", "JPEG")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # of 8 bits and less
SMALLEST, LARGEST, LONGEST = 8, 1 << 13, 8  # pixels of a side; longer side over shorter


def read_image(path: Path) -> Image.Image:
    """Return a PNG or JPEG file.

    Raises
    ------
    TwillcoreError
        If it cannot be read, is of another type, has more than 8 bits per sample, or a size that
        no photograph has.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check(path, image)
            image.load()
            return image.copy()
    except UnidentifiedImageError:
        raise TwillcoreError(f"{path}: needs an image, {' or '.join(FORMATS)}") from None
    except OSError as error:  # of the file system, or a file that ends early
        raise TwillcoreError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise TwillcoreError(f"{path}: damaged, or no image: {error}") from None


def _check(path: Path, image: Image.Image) -> None:
    width, height = image.size
    if image.mode not in MODES:
        raise TwillcoreError(f"{path}: needs 8 bits per sample; pixels are of type {image.mode}")
    sides = sorted(image.size)
    if sides[0] < SMALLEST or sides[1] > LARGEST or sides[1] > LONGEST * sides[0]:
        raise TwillcoreError(
            f"{path}: sides must be {SMALLEST}..{LARGEST} pixels, one at most {LONGEST} times the"
            f" other, not {width} x {height}"
        )


def photograph(path: Path) -> Tensor:
    """Return a file as (1, 3, 224, 224) float32, around 0; raises as :func:`read_image`."""
    image = read_image(path).convert("RGB")
    width, height = image.size
    if width <= height:
        size = SCALED, SCALED * height // width
    else:
        size = SCALED * width // height, SCALED
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (round((side - SIDE) / 2) for side in size)
    return normalised(np.asarray(image.crop((left, top, left + SIDE, top + SIDE))))


def normalised(pixels: NDArray[np.uint8]) -> Tensor:
    """Return pixels (height, width, 3) as (1, 3, height, width), by mean and deviation."""
    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    mean, deviation = (torch.tensor(values)[None, :, None, None] for values in (MEAN, DEVIATION))
    return ((planes - mean) / deviation).contiguous()


def random_photograph(seed: int) -> Tensor:
    """Return a random image as (1, 3, 224, 224): noise of every scale, as photographs have.

    White noise alone looks the same everywhere, and so do then all of a network's outputs.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(1, 3, SIDE, SIDE)
    for cells in (2, 4, 8, 16, 32, 64, SIDE):
        noise = torch.randn(1, 3, cells, cells, generator=generator)
        total += functional.interpolate(noise, SIDE, mode="bilinear") / cells**0.5
    pixels = (127.5 + 50 * total).round().clamp(0, 255).byte()
    return normalised(pixels[0].permute(1, 2, 0).numpy())


def digit(path: Path) -> Tensor:
    """Return a file as (1, 1, 8, 8) float32 around 0: a digit, bright on dark, as scikit-learn's.

    Raises
    ------
    TwillcoreError
        If it is not square, or as :func:`read_image`.
    """
    image = read_image(path)
    if image.width != image.height:
        raise TwillcoreError(
            f"{path}: the image of a digit must be square, not {image.width} x {image.height}"
        )
    small = image.convert("L").resize((8, 8), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small).copy())[None, None].float() / 127.5 - 1
