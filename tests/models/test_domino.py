"""DominoSearch: the density is reached, important layers keep more; ERK adds up."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from twillcore.errors import TwillcoreError
from twillcore.models.domino import Search, erk_densities, search_scheme


def problem():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 4))
    student = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 4))
    student.load_state_dict(teacher.state_dict())

    def loss(step):
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
        return functional.mse_loss(student(x), teacher(x).detach())

    macs = {name: float(m.weight.numel()) for name, m in student.named_modules() if name and
            isinstance(m, nn.Linear)}  # fmt: skip
    return student, loss, macs


def test_density_is_reached_in_powers_of_two():
    student, loss, macs = problem()
    search = Search(group=8, decay=1.0, doubling=300, review=20, iterations=3000)
    scheme = search_scheme(student, loss, 0.5, macs, search)
    kept = {name: pattern.kept for name, pattern in scheme.items()}
    assert set(kept.values()) <= {1, 2, 4, 8}
    assert sum(macs[n] * k / 8 for n, k in kept.items()) / sum(macs.values()) <= 0.501
    assert not any(parametrize.is_parametrized(m) for m in student.modules())


def test_targets_out_of_reach():
    student, loss, macs = problem()
    with pytest.raises(TwillcoreError) as caught:
        search_scheme(student, loss, 0.1, macs)
    assert str(caught.value) == "density 0.1 cannot be met: the best possible of N:8 is 0.125"
    with pytest.raises(TwillcoreError, match=r"came to a density of 1\.000, not 0\.5, in 5 iter"):
        search_scheme(student, loss, 0.5, macs, Search(iterations=5))


def test_erk_keeps_the_total_and_small_layers_dense():
    shapes = {"a": (64, 64), "b": (256, 256), "c": (10, 64)}
    densities = erk_densities(shapes, 0.2)
    sizes = {name: shape[0] * shape[1] for name, shape in shapes.items()}
    kept = sum(sizes[n] * d for n, d in densities.items())
    assert kept == pytest.approx(0.2 * sum(sizes.values()))
    assert densities["c"] == 1.0
    assert densities["a"] > densities["b"]
    ratio = (128 / sizes["a"]) / (512 / sizes["b"])
    assert densities["a"] / densities["b"] == pytest.approx(ratio)
