"""Inputs of a network in ``.npz`` files: one array per input, samples along the first axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from numpy.typing import NDArray

from twillcore.errors import TwillcoreError


@dataclass(frozen=True)
class InputShape:
    """An input of a network: what it is called, and what one run takes."""

    name: str
    shape: tuple[int, ...]


def split_samples(
    arrays: Mapping[str, NDArray], inputs: Sequence[InputShape], source: str
) -> list[tuple[NDArray, ...]]:
    """Return the arrays of every run: slices along the first axis, each as long as a run takes.

    Arrays go by the names of the inputs, or, named ``arr_0``, ``arr_1``, ... as ``numpy.savez``
    does, by their order.

    Raises
    ------
    TwillcoreError
        If names or shapes do not fit; all problems in one message.
    """
    names = [one.name for one in inputs]
    if arrays and arrays.keys() == {f"arr_{i}" for i in range(len(inputs))}:
        arrays = {name: arrays[f"arr_{i}"] for i, name in enumerate(names)}
    problems = []
    if missing := [name for name in names if name not in arrays]:
        problems.append(f"missing arrays: {', '.join(missing)}")
    if unknown := [name for name in arrays if name not in names]:
        problems.append(f"unknown arrays: {', '.join(unknown)}")
    runs: dict[str, int] = {}
    for one in inputs:
        if (array := arrays.get(one.name)) is None:
            continue
        if not one.shape or array.shape == one.shape:
            runs[one.name] = 1
        elif array.shape[1:] == one.shape[1:] and len(array) and not len(array) % one.shape[0]:
            runs[one.name] = len(array) // one.shape[0]
        else:
            wanted = ", ".join(map(str, one.shape[1:]))
            problems.append(
                f"{one.name}: shape must be ({one.shape[0]} or a multiple, {wanted}),"
                f" not {array.shape}"
            )
    if not problems and len(set(runs.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in runs.items())
        problems.append(f"arrays hold different numbers of samples: {counts}")
    if problems:
        expected = ", ".join(f"{one.name} {list(one.shape)}" for one in inputs)
        raise TwillcoreError(f"{source}: {'; '.join(problems)}; the network takes {expected}")
    return [
        tuple(
            arrays[one.name][run * one.shape[0] : (run + 1) * one.shape[0]]
            if one.shape
            else arrays[one.name]
            for one in inputs
        )
        for run in range(next(iter(runs.values()), 0))
    ]
