"""SAD, sparse architecture divergence: how much masks move (Zhou et al. 2021, equation 5).

``SAD(i, j) = sum over layers of ||E_i - E_j||_1``: the mask bits that differ between two steps.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from twillcore.models.sr_ste import parametrised


def divergence(before: dict[str, Tensor], after: dict[str, Tensor]) -> int:
    """Return the number of bits in which two sets of masks, by layer, differ."""
    return sum(int((before[name] ^ mask).sum()) for name, mask in after.items())


@dataclass
class Sad:
    """Sums the divergence of a module's masks from one :meth:`update` to the next.

    Attributes
    ----------
    total : bits that changed, summed over all updates
    weights : weights that have masks
    """

    total: int = 0
    weights: int = 0
    _last: dict[str, Tensor] = field(default_factory=dict)

    def update(self, module: nn.Module) -> int:
        """Take in the masks of the last forward of ``module``; return what changed since."""
        masks = {name: p.mask for name, _, p in parametrised(module) if p.mask is not None}
        changed = divergence(self._last, masks) if self._last else 0
        self._last = masks
        self.weights = sum(mask.numel() for mask in masks.values())
        self.total += changed
        return changed

    def state(self) -> dict[str, object]:
        """Return everything, for a checkpoint."""
        return {"total": self.total, "weights": self.weights, "last": self._last}

    @classmethod
    def of_state(cls, state: dict) -> "Sad":
        """Return what goes on where :meth:`state` was called."""
        return cls(state["total"], state["weights"], state["last"])

    @property
    def per_weight(self) -> float:
        """The total divided by the number of weights."""
        return self.total / self.weights if self.weights else 0.0
