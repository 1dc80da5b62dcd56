"""What becomes of a tool that is missing or fails."""

import pytest

from twillcore.errors import TwillcoreError
from twillcore.fpga.tools import Tool


def test_missing_tool_says_how_to_get_it(tmp_path):
    tool = Tool("Frobnicator", "yowasp-frobnicator", "run")
    with pytest.raises(TwillcoreError) as caught:
        tool.run([], tmp_path / "log")
    assert str(caught.value) == (
        "Frobnicator is missing; install it with: pip install yowasp-frobnicator"
    )


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Return a tool that executes its argument as Python."""
    (tmp_path / "fake_tool.py").write_text(
        "def run(arguments):\n    exec(arguments[0])\n    return 3\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(Tool, "version", "1.0")
    return Tool("Fake", "fake-tool", "run", r"^stage (\w+)")


def test_failure_shows_the_errors(fake, tmp_path):
    log = tmp_path / "log"
    with pytest.raises(TwillcoreError) as caught:
        fake.run(["for n in range(20): print('line', n)\nprint('ERROR: too large')"], log)
    assert str(caught.value) == (
        f"Fake failed (exit code 3; all of it is in {log}); its last lines:\nERROR: too large"
    )
    assert log.read_text().startswith("line 0\n")


def test_failure_without_error_shows_the_last_lines(fake, tmp_path):
    with pytest.raises(TwillcoreError) as caught:
        fake.run(["for n in range(20): print('line', n)"], tmp_path / "log")
    assert str(caught.value).endswith("\n".join(f"line {n}" for n in range(14, 20)))


def test_crash_is_no_traceback_of_ours(fake, tmp_path):
    with pytest.raises(TwillcoreError, match=r"(?s)Fake failed \(exit code 1; .*ZeroDivision"):
        fake.run(["1 / 0"], tmp_path / "log")


def test_stages_are_shown_as_they_come(fake, tmp_path):
    stages = []
    code = "print('stage one'); print('else'); print('stage two'); import sys; sys.exit(0)"
    assert fake.run([code], tmp_path / "log", stages.append) == "stage one\nelse\nstage two\n"
    assert stages == ["Fake: one", "Fake: two"]
