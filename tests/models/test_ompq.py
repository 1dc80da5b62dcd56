"""OMPQ: ORM is linear CKA, the program fills its budget from the corners."""

import numpy as np
import pytest
import torch
from torch import nn

from twillcore.errors import TwillcoreError
from twillcore.models.ompq import choose_bits, features, importance, orthogonality


def test_orm_by_its_definition_in_feature_space():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5), nn.Linear(5, 5))
    found = features(net, (torch.randn(12, 6),))
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        "0": (12, 9), "2": (12, 5), "3": (12, 5)
    }  # fmt: skip
    orm = orthogonality(found)
    a, b = (found[n].double() - found[n].double().mean(0) for n in ("0", "3"))
    expected = (a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    assert orm[0, 2] == pytest.approx(float(expected))
    assert np.diagonal(orm) == pytest.approx(1)
    assert (orm == orm.T).all()


def test_importance_is_the_mean_to_the_last_layer():
    orm = np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.25], [0.0, 0.25, 1.0]])
    theta = np.exp(-2 * np.array([0.5, 0.75, 0.25]))
    assert importance(orm, 2.0) == pytest.approx([theta.mean(), theta[1:].mean(), theta[2]])


def test_bits_go_to_the_corners():
    weights = {"a": 100, "b": 100, "c": 100}
    bits = choose_bits(weights, np.array([3.0, 2.0, 1.0]), 4.0)
    assert bits == {"a": 8, "b": 2, "c": 2}
    with pytest.raises(TwillcoreError) as caught:
        choose_bits(weights, np.ones(3), 1.5)
    assert str(caught.value) == (
        "the target of 1.5 bits on average cannot be met: the best possible is 2"
    )
