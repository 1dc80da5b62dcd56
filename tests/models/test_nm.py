"""N:M projection against its definition and against PyTorch's own sparsifier."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from twillcore.config import PRESETS
from twillcore.errors import TwillcoreError
from twillcore.models.nm import project, prune_by_magnitude, satisfies
from twillcore.models.pattern import Pattern

patterns = st.integers(1, 16).flatmap(
    lambda group: st.builds(Pattern, st.integers(1, group), st.just(group))
)


def by_definition(row: list[float], pattern: Pattern) -> list[float]:
    kept = list(row)
    for start in range(0, len(row), pattern.group):
        group = range(start, min(start + pattern.group, len(row)))
        for i in sorted(group, key=lambda i: (-abs(row[i]), i))[pattern.kept :]:
            kept[i] = 0.0
    return kept


@given(
    pattern=patterns,
    rows=st.integers(1, 50).flatmap(
        lambda inputs: st.lists(
            st.lists(st.integers(-3, 3), min_size=inputs, max_size=inputs), min_size=1, max_size=4
        )
    ),
)
def test_projection_is_its_definition_ties_and_tails_included(pattern, rows):
    weight = torch.tensor(rows, dtype=torch.float32)
    projected = project(weight, pattern)
    assert projected.tolist() == [by_definition([float(x) for x in row], pattern) for row in rows]
    assert satisfies(projected, pattern)
    assert torch.equal(project(projected, pattern), projected)


def test_lowest_index_wins():
    assert project(torch.ones(1, 8), Pattern(2, 4)).tolist() == [[1, 1, 0, 0, 1, 1, 0, 0]]


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (4, 8), (2, 8), (3, 4), (1, 2)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_equals_the_sparsifier_of_pytorch(pattern):
    from torch.ao.pruning import WeightNormSparsifier

    pattern = Pattern(*pattern)
    torch.manual_seed(0)
    theirs, ours = nn.Sequential(nn.Linear(48, 20)), nn.Sequential(nn.Linear(48, 20))
    ours.load_state_dict(theirs.state_dict())
    sparsifier = WeightNormSparsifier(
        sparsity_level=1.0,
        sparse_block_shape=(1, pattern.group),
        zeros_per_block=pattern.group - pattern.kept,
    )
    sparsifier.prepare(theirs, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    sparsifier.squash_mask()
    prune_by_magnitude(ours, pattern)
    assert torch.equal(ours[0].weight, theirs[0].weight)


def test_parse():
    assert Pattern.parse("2:4") == Pattern(2, 4)
    assert Pattern.parse("dense") is None
    assert str(Pattern(3, 8)) == "3:8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2to4", "sparsity must be 'dense' or N:M such as 2:4, not '2to4'"),
        ("5:4", "N:M sparsity needs 1 <= N <= M, not 5:4"),
        ("0:4", "N:M sparsity needs 1 <= N <= M, not 0:4"),
    ],
)
def test_wrong_patterns_are_named(text, message):
    with pytest.raises(TwillcoreError) as caught:
        Pattern.parse(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "beats"), [("2:4", 4), ("1:4", 2), ("1:2", 4), ("3:8", 3), ("1:8", 1), ("4:4", 8)]
)
def test_beats_at_equal_density(text, beats):
    assert Pattern.parse(text).beats(PRESETS["u256"]) == beats


def test_groups_that_do_not_divide_the_block_are_refused():
    with pytest.raises(TwillcoreError) as caught:
        Pattern(2, 3).beats(PRESETS["u256"])
    assert str(caught.value) == (
        "sparsity 2:3: 3 does not divide the block of 8 of configuration 'u256'"
    )
