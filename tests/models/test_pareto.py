"""The front against its definition."""

from hypothesis import given
from hypothesis import strategies as st

from twillcore.models.pareto import front


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_front_is_what_nothing_beats(points):
    kept = front(points)
    for i, (cost, score) in enumerate(points):
        beaten = any(
            (c <= cost and s >= score) and ((c, s) != (cost, score) or j < i)
            for j, (c, s) in enumerate(points)
            if j != i
        )
        assert (i in kept) != beaten
    assert [points[i][0] for i in kept] == sorted(points[i][0] for i in kept)
