"""Views follow what torch does to a tensor of indices."""

import numpy as np
import pytest
import torch

from twillcore.compiler.symbols import layout_of
from twillcore.compiler.views import Atom, NoViewError, View, dimension, renumber, reshape

BATCH, ROWS, CHANNELS = 2, 3, 12
SHAPE = BATCH, ROWS, CHANNELS


def start():
    axes = zip("brc", SHAPE, strict=True)
    return View("x", tuple(dimension(Atom(axis, n)) for axis, n in axes))


def numbers():
    return torch.arange(BATCH * ROWS * CHANNELS).reshape(SHAPE)


def test_reshape_permute_and_back():
    x, view = numbers(), start()
    x = x.reshape(BATCH, ROWS, 3, 4).permute(2, 1, 0, 3).reshape(3, ROWS, BATCH * 4)
    view = view.reshape((BATCH, ROWS, 3, 4)).permute((2, 1, 0, 3)).reshape((3, ROWS, BATCH * 4))
    layout = layout_of(view.dims, "brc")
    assert view.shape == tuple(x.shape)
    assert np.array_equal(layout.to_framework(numbers().numpy()), x)
    assert np.array_equal(layout.from_framework(x.numpy(), SHAPE), numbers())


def test_slices_of_channels():
    x, view = numbers(), start()
    x = x.reshape(BATCH, ROWS, 2, 3, 2)[:, :, :, 1]
    view = view.reshape((BATCH, ROWS, 2, 3, 2)).narrow(3, 1, 1).without(3)
    index = view.channel_index()
    assert np.array_equal(numbers()[..., index].reshape(x.shape), x)
    assert index.tolist() == [2, 3, 8, 9]


def test_slice_inside_a_slice():
    view = start().narrow(2, 4, 8).reshape((BATCH, ROWS, 2, 4)).narrow(2, 1, 1)
    assert view.channel_index().tolist() == [8, 9, 10, 11]


def test_sizes_of_one_vanish():
    dims = (dimension(Atom("b", 1)), dimension(Atom("r", 1), Atom("c", 6)))
    assert dims == ((), (Atom("c", 6),))
    assert reshape(dims, (1, 2, 1, 3)) == ((), (Atom("c", 2, 3),), (), (Atom("c", 3),))


def test_renumber_counts_in_the_order_of_dimensions():
    view = start().reshape((BATCH, ROWS, 3, 4)).permute((3, 0, 1, 2))
    dims = renumber(view.dims, "c", "h", 8)
    assert [a for d in dims for a in d if a.axis == "h"] == [Atom("h", 4, 24), Atom("h", 3, 8)]


def test_refusals():
    with pytest.raises(NoViewError, match=r"shape \[4, 18\] cuts across"):
        start().reshape((4, 18))
    with pytest.raises(NoViewError, match="slice of rows"):
        start().narrow(1, 0, 1)
    with pytest.raises(NoViewError, match="slice cuts across heads"):
        View("x", (dimension(Atom("c", 3, 8), Atom("c", 4)),)).narrow(0, 1, 5)
