"""How layers are divided between the two cores: what a policy says, by module path."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from twillcore.compiler.errors import CompileError
from twillcore.config import Config
from twillcore.isa import LUT_WEIGHT_BITS


@dataclass(frozen=True)
class LutShare:
    """What the LUT core computes of a layer.

    Attributes
    ----------
    bits : of its weights, 1..8
    share : of the output channels, 0..1; None: what makes both cores finish together
    """

    bits: int
    share: float | None = None


@dataclass(frozen=True)
class Shares:
    """The :class:`LutShare` of layers by module path, and of all that are not named.

    A path stands for everything in that module, unless a longer one says otherwise.
    """

    layers: Mapping[str, LutShare]
    usual: LutShare | None = None

    def of(self, path: str) -> LutShare | None:
        """Return the share of a layer; None: it runs on the DSP core."""
        found = self.usual
        while path:
            if path in self.layers:
                found = self.layers[path]
                break
            path = path.rpartition(".")[0]
        return None if found is None or found.share == 0 else found

    def check(self, paths: Iterable[str], config: Config) -> None:
        """Check that every named layer is one of ``paths`` or has some of them in it.

        Raises
        ------
        CompileError
            With all unknown names, or if the configuration has no LUT core.
        """
        known = set()
        for path in paths:
            while path:
                known.add(path)
                path = path.rpartition(".")[0]
        if unknown := [name for name in self.layers if name not in known]:
            raise CompileError(f"policy: the network has no layer {', '.join(unknown)}")
        wanted = [name for name, share in self.layers.items() if share.share]
        if self.usual is not None and self.usual.share != 0:
            wanted.append("all layers")
        if wanted and not config.lut_columns:
            raise CompileError(
                f"configuration {config.name!r} has no LUT core (lut_columns = 0), which is to"
                f" compute a share of {', '.join(wanted)}"
            )
        bits = [s.bits for s in (*self.layers.values(), self.usual) if s is not None]
        if any(not 1 <= n <= LUT_WEIGHT_BITS for n in bits):
            raise CompileError(f"weights on the LUT core have 1..8 bits, not {sorted(set(bits))}")


#: Everything on the DSP core.
NO_SHARES = Shares({})
