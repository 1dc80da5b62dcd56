"""The name of an N:M sparsity, without any framework."""

import re
from dataclasses import dataclass

from twillcore.config import Config
from twillcore.errors import TwillcoreError


@dataclass(frozen=True)
class Pattern:
    """At most ``kept`` of every ``group`` consecutive inputs: written ``kept:group``."""

    kept: int
    group: int

    def __post_init__(self) -> None:
        if not 1 <= self.kept <= self.group:
            raise TwillcoreError(f"N:M sparsity needs 1 <= N <= M, not {self}")

    def __str__(self) -> str:
        return f"{self.kept}:{self.group}"

    @classmethod
    def parse(cls, text: str) -> "Pattern | None":
        """Read ``"2:4"``; ``"dense"`` gives None."""
        if text == "dense":
            return None
        match = re.fullmatch(r"(\d+):(\d+)", text)
        if not match:
            raise TwillcoreError(f"sparsity must be 'dense' or N:M such as 2:4, not {text!r}")
        return cls(int(match[1]), int(match[2]))

    def beats(self, config: Config) -> int:
        """Return the weights kept of every block of the hardware: the pattern at equal density.

        Raises
        ------
        TwillcoreError
            If the group does not divide the block.
        """
        if config.block % self.group:
            raise TwillcoreError(
                f"sparsity {self}: {self.group} does not divide the block of {config.block}"
                f" of configuration {config.name!r}"
            )
        return self.kept * config.block // self.group
