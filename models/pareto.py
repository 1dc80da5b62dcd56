"""Which of several candidates are worth having."""

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the numbers of the points (cost, score) that no other beats, by rising cost.

    A point beats another if it costs no more and scores no less, and differs in one. Of equal
    points the first stays.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i))
    kept: list[int] = []
    for i in order:
        if not kept or points[i][1] > points[kept[-1]][1]:
            kept.append(i)
    return kept
