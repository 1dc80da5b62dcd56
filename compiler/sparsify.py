"""How sparse weights are, in the only sense that counts for time: N non-zeros per block of B."""

import numpy as np
from numpy.typing import NDArray


def beats_per_block(weight: NDArray[np.int8], block: int) -> int:
    """Return the smallest N such that every aligned ``block`` of inputs has at most N non-zeros.

    ``weight`` is (outputs, inputs); the last block may be shorter. At least 1.
    """
    outputs, inputs = weight.shape
    if not outputs:
        return 1
    kept = np.zeros((outputs, -(-inputs // block) * block), bool)
    kept[:, :inputs] = weight != 0
    return max(1, int(kept.reshape(outputs, -1, block).sum(-1).max(initial=0)))


def window_beats(weight: NDArray[np.int8], groups: int, block: int) -> int:
    """Return the same for a convolution, whose blocks lie inside one tap.

    ``weight`` is (outputs, height, width, inputs / groups); group g starts at input g * inputs /
    groups, be it in the middle of a block.
    """
    if not len(weight):
        return 1
    inputs = weight.shape[3]
    parts = np.split(weight, groups) if groups > 1 and inputs > 1 else [weight]
    return max(
        beats_per_block(
            np.pad(part.reshape(-1, inputs), ((0, 0), (group * inputs % block, 0))), block
        )
        for group, part in enumerate(parts)
    )
