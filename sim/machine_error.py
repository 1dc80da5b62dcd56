"""How the machine stops on a program that it cannot execute; every engine raises the same error."""

from twillcore.errors import TwillcoreError
from twillcore.isa import CAUSE_MEANINGS, Cause


class MachineError(TwillcoreError):
    """The machine stopped: an illegal program, a failing memory, or a token that never comes.

    Attributes
    ----------
    cause : why, as in the ERROR_CAUSE register
    engine : name of the engine that noticed ("load", "gemm", ... or "dispatch")
    index : position of the instruction in its program, None if none is to blame
    text : the instruction as the disassembler writes it, empty if there is none
    detail : what exactly is wrong, empty if the engine does not know
    """

    def __init__(
        self,
        cause: Cause,
        engine: str,
        index: int | None = None,
        text: str = "",
        detail: str = "",
    ) -> None:
        self.cause, self.engine, self.index = Cause(cause), engine, index
        self.text, self.detail = text, detail
        where = f" at instruction {index}" if index is not None else ""
        message = f"{engine} stopped{where}: {CAUSE_MEANINGS[self.cause]}"
        if detail:
            message += f" ({detail})"
        if text:
            message += f": {text}"
        super().__init__(message)
