"""What the README shows works."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from twillcore import cli

README = (Path(__file__).parents[2] / "README.md").read_text()
COMMANDS = sorted(
    {match.strip() for match in re.findall(r"^    (twillcore [^#\n]+)", README, re.MULTILINE)}
)


def test_python_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert (names["result"].outputs[0] - names["model"](names["x"])).abs().max() < 0.05
    assert str(names["result"].cycles) in capsys.readouterr().out
    assert (tmp_path / "mlp.twill").is_file()


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line):
    """Names and options exist; what they do is tested elsewhere."""
    import typer

    command = typer.main.get_command(cli.app)
    _, *arguments = shlex.split(line)
    context = command.make_context("twillcore", arguments, resilient_parsing=False)
    name, subcommand, rest = command.resolve_command(context, arguments)
    subcommand.make_context(name, rest, parent=context)


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("http"):
            assert (Path(__file__).parents[2] / target).exists(), target
