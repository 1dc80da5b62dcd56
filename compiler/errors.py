"""Why a network cannot be compiled, in words for its author."""

from twillcore.errors import TwillcoreError


class CompileError(TwillcoreError):
    """A network that cannot be compiled for a configuration, with every reason in one message."""
