"""Twillcore: N:M-sparse neural-network accelerators, from PyTorch to open RTL.

``twillcore.compile(module, example_inputs, config="u256", calibration=[...])`` returns a
:class:`~twillcore.flow.Program`; ``twillcore.load(path)`` reads one that was saved.
``twillcore.compress(module, example_inputs, target=..., data=...)`` returns a smaller module and
its policy.
"""

from functools import partial, update_wrapper
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twillcore.flow import Program, RunResult, compile, load
    from twillcore.models.compress import compress

__all__ = ["Program", "RunResult", "compile", "compress", "load"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # late: both bring torch
    from twillcore import flow

    if name == "compress":
        from twillcore.models.compress import compress

        whole = partial(compress, program_cycles=flow.program_cycles)
        return update_wrapper(whole, compress)
    return getattr(flow, name)
