"""The digits ViT: patches lie where they belong, a short training learns, masks move."""

import pytest
import torch

from twillcore.errors import TwillcoreError
from twillcore.models.digits import load_digits, patches, shifted
from twillcore.models.digits_vit import DigitsViT, accuracy, fit, train_dense
from twillcore.models.nm import satisfies
from twillcore.models.pattern import Pattern
from twillcore.models.sr_ste import freeze, sparsify


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_split_is_stratified_and_fixed():
    digits = load_digits()
    assert digits.train.shape == (1347, 8, 8)
    assert digits.test.shape == (450, 8, 8)
    assert digits.test_labels.bincount().min() >= 43
    assert digits.train.min() == -1
    assert digits.train.max() == 1


def test_patches_are_squares_in_reading_order():
    image = torch.arange(64.0).view(1, 8, 8)
    found = patches(image)
    assert found[0, 0].tolist() == [0, 1, 8, 9]
    assert found[0, 1].tolist() == [2, 3, 10, 11]
    assert found[0, 4].tolist() == [16, 17, 24, 25]


def test_shifts_are_by_at_most_a_pixel():
    images = torch.full((200, 8, 8), -1.0)
    images[:, 3, 4] = 1.0
    moved = shifted(images, torch.Generator().manual_seed(0))
    where = {tuple(position) for position in (moved == 1).nonzero()[:, 1:].tolist()}
    assert where == {(row, column) for row in (2, 3, 4) for column in (3, 4, 5)}


def test_sizes_are_as_documented():
    module = DigitsViT()
    assert sum(p.numel() for p in module.parameters()) == 102_538
    assert len(module.sparse()) == 18
    assert sum(module.get_submodule(n).weight.numel() for n in module.sparse()) == 98_304


def test_a_short_training_learns_dense_and_sparse():
    digits = load_digits()
    dense = train_dense(digits, 0, epochs=4)
    before = accuracy(dense, digits)
    assert before > 0.5
    sparsify(dense, dict.fromkeys(dense.sparse(), Pattern(1, 4)), decay=0.0)
    sad = fit(dense, digits, 2, 1e-3, 0, decay=1.0)
    assert 0 < sad.per_weight < 2
    freeze(dense)
    assert all(satisfies(dense.get_submodule(n).weight, Pattern(1, 4)) for n in dense.sparse())
    assert accuracy(dense.eval(), digits) > 0.4


def test_nan_is_reported():
    with pytest.raises(
        TwillcoreError, match=r"the loss is nan in epoch 0: lower the rate of 1e\+30"
    ):
        fit(DigitsViT(), load_digits(), 1, 1e30, 0)
