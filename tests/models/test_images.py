"""Images: prepared as torchvision does, and refused with the reason."""

import numpy as np
import pytest
import torch
from PIL import Image

from twillcore.errors import TwillcoreError
from twillcore.models.images import digit, photograph, random_photograph


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def test_a_photograph_is_scaled_cut_and_normalised(tmp_path):
    pixels = np.zeros((256, 384, 3), np.uint8)  # the shorter side is 256 already: nothing is scaled
    pixels[16, 80] = 255, 0, 128  # the corner of the 224 x 224 in the middle
    image = photograph(save(tmp_path / "a.png", pixels))
    assert image.shape == (1, 3, 224, 224)
    assert image.dtype == torch.float32
    black = [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    corner = [(1 - 0.485) / 0.229, black[1], (128 / 255 - 0.406) / 0.225]
    assert image[0, :, 0, 0].tolist() == pytest.approx(corner, abs=1e-6)
    assert image[0, :, 0, 1].tolist() == pytest.approx(black, abs=1e-6)


@pytest.mark.parametrize("size", [(512, 700), (700, 512), (90, 100), (64, 64)])
def test_sizes_follow_torchvision(tmp_path, size):
    gradient = np.linspace(0, 255, size[0]).astype(np.uint8)[:, None, None]
    image = photograph(save(tmp_path / "a.png", np.tile(gradient, (1, size[1], 3))))
    # the cut shows 224 of 256 lines when height is the shorter side, else fewer of more
    shown = 224 / (256 * max(1, size[0] / size[1]))
    values = image[0, 0, :, 0] * 0.229 + 0.485
    assert float(values[-1] - values[0]) == pytest.approx(shown, abs=0.02)
    assert torch.equal(image[..., 0], image[..., -1])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "1"])
def test_kinds_of_pixels_are_converted(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new("RGB", (40, 30), "white").convert(mode).save(path)
    white = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert photograph(path)[0, :, 5, 5].tolist() == pytest.approx(white, abs=1e-6)


def test_a_digit_is_eight_by_eight_around_zero(tmp_path):
    pixels = np.zeros((16, 16), np.uint8)
    pixels[2:4, 4:6] = 255
    image = digit(save(tmp_path / "a.png", pixels))
    expected = torch.full((1, 1, 8, 8), -1.0)
    expected[0, 0, 1, 2] = 1
    assert torch.equal(image, expected)


def test_wrong_images_are_refused(tmp_path):
    grey = np.zeros((20, 30), np.uint8)
    half = tmp_path / "half.png"
    noise = np.random.default_rng(0).integers(0, 255, (99, 99, 3)).astype(np.uint8)
    half.write_bytes(save(tmp_path / "whole.png", noise).read_bytes()[:9999])
    text = tmp_path / "a.txt"
    text.write_text("a cat")
    cases = [
        (photograph, tmp_path / "none.png", "cannot be read: No such file"),
        (photograph, tmp_path, "cannot be read: Is a directory"),
        (photograph, text, "needs an image, PNG or JPEG"),
        (photograph, save(tmp_path / "a.gif", grey), "needs an image, PNG or JPEG"),
        (photograph, half, "cannot be read: "),
        (photograph, save(tmp_path / "16.png", grey.astype(np.uint16)), "8 bits per sample"),
        (photograph, save(tmp_path / "thin.png", np.zeros((8, 80), np.uint8)), "not 80 x 8"),
        (photograph, save(tmp_path / "small.png", np.zeros((4, 4), np.uint8)), "not 4 x 4"),
        (digit, save(tmp_path / "wide.png", grey), "must be square, not 30 x 20"),
    ]
    for read, path, message in cases:
        with pytest.raises(TwillcoreError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert message in str(caught.value)


def test_random_photographs_differ_by_seed_and_within():
    a, again, b = random_photograph(1), random_photograph(1), random_photograph(2)
    assert torch.equal(a, again)
    assert not torch.equal(a, b)
    assert a.shape == (1, 3, 224, 224)
    assert -2.2 < float(a.min()) < float(a.max()) < 2.7
    coarse = torch.nn.functional.avg_pool2d(a, 56)
    assert float(coarse.std()) > 0.2  # white noise would have 1/56 of a pixel's
