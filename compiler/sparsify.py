"""How sparse weights are, in the only sense that counts for time: N non-zeros per block of B."""

import numpy as np
from numpy.typing import NDArray


def beats_per_block(weight: NDArray[np.int8], block: int) -> int:
    """Return the smallest N such that every aligned ``block`` of inputs has at most N non-zeros.

    ``weight`` is (outputs, inputs); the last block may be shorter. At least 1.
    """
    outputs, inputs = weight.shape
    kept = np.zeros((outputs, -(-inputs // block) * block), bool)
    kept[:, :inputs] = weight != 0
    return max(1, int(kept.reshape(outputs, -1, block).sum(-1).max(initial=0)))
