"""The command line: ``twillcore --help``. Every command is one file in :mod:`twillcore.commands`.

Nothing heavy (torch, numpy, Amaranth) is imported before a command runs.
"""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from twillcore.commands import (
    bitstream,
    compile,
    compress,
    config,
    conv,
    disasm,
    doctor,
    gemm,
    inspect,
    pareto,
    pnr,
    profile,
    resources,
    run,
    simulate,
    verilog,
)
from twillcore.errors import TwillcoreError

COMMANDS = (
    run, gemm, conv, compile, simulate, disasm, inspect, profile, compress, pareto, verilog,
    resources, pnr, bitstream, config, doctor,
)  # fmt: skip

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"twillcore {version('twillcore')}")
        raise typer.Exit


@app.callback(epilog="Start with: twillcore run minilm --text 'Hello world'")
def twillcore(
    print_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """N:M sparse neural-network accelerators: compile, simulate, generate Verilog."""


for _module in COMMANDS:
    _name = _module.__name__.rpartition(".")[2]
    app.command(_name, epilog="\n  ".join(("Examples:", *_module.EXAMPLES)))(_module.command)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and leave with its exit code: 0, 1 after an error, 2 after wrong usage."""
    try:
        app(arguments, prog_name="twillcore")
    except TwillcoreError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
        sys.exit(1)


if __name__ == "__main__":
    main()
