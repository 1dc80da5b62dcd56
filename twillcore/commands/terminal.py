"""What commands show: progress and messages on stderr, results on stdout.

On a terminal, progress is a line that moves and vanishes; in a log, a line now and then.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

LOG_SECONDS = 3.0  # between two lines of progress in a log

results = Console(highlight=False, soft_wrap=True)
messages = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(data: object) -> None:
    """Print ``data`` as the only thing on stdout."""
    print(json.dumps(data, indent=2))


class Activity:
    """Something that takes a while, as one line of text and perhaps a bar."""

    def __init__(self, progress: Progress, what: str, total: int | None = None) -> None:
        self._progress, self._task = progress, progress.add_task(what, total=total)
        self._what, self._logged = what, time.monotonic()

    def update(self, text: str, done: int | None = None, total: int | None = None) -> None:
        """Change the text, and how much is done of how much."""
        self._progress.update(self._task, description=text, completed=done, total=total)
        now = time.monotonic()
        if not messages.is_terminal and now - self._logged > LOG_SECONDS:
            self._logged = now
            messages.print(text)


class Log:
    """Says in a log, now and then, how far many short activities are; a terminal shows each."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def say(self, text: str) -> None:
        """Print ``text``, if the last one is some time ago."""
        now = time.monotonic()
        if not messages.is_terminal and now - self._last > LOG_SECONDS:
            self._last = now
            messages.print(text)


@contextmanager
def _activity(what: str, total: int | None = None, bar: bool = True) -> Iterator[Activity]:
    bars = (BarColumn(),) if bar else ()
    columns = SpinnerColumn(), TextColumn("{task.description}"), *bars, TimeElapsedColumn()
    silent = not messages.is_terminal
    with Progress(*columns, console=messages, transient=True, disable=silent) as progress:
        yield Activity(progress, what, total)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show that something runs, and for how long."""
    if not messages.is_terminal:
        messages.print(f"{what} ...")
    with _activity(what, bar=False):
        yield


@contextmanager
def changing(what: str) -> Iterator[Callable[[str], None]]:
    """Show that something runs, and in which stage it is: the value is called with its name."""
    if not messages.is_terminal:
        messages.print(f"{what} ...")
    with _activity(what, bar=False) as activity:
        yield lambda stage: activity.update(f"{what}: {stage}")


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show a bar; the value is called with what is done, the total and the name of the next."""
    with _activity(what) as activity:
        yield lambda done, total, name: activity.update(
            f"{what} {min(done + 1, total)}/{total} {name}", done, total
        )


class Cycles:
    """Called with the cycles that have been simulated."""

    def __init__(self, activity: Activity, what: str) -> None:
        self._activity, self._what = activity, what
        self._first: tuple[float, int] | None = None

    def __call__(self, cycles: int) -> None:
        now = time.monotonic()
        started, before = self._first = self._first or (now, cycles)
        text = f"{self._what}: {cycles:,} cycles"
        if now - started > 0.2:
            text += f", {(cycles - before) / (now - started) / 1e6:.2f} Mcycle/s"
        self._activity.update(text, cycles)

    def say(self, message: str) -> None:
        """Show what takes long before the first cycle."""
        if not messages.is_terminal:
            messages.print(message)
        self._activity.update(message)


@contextmanager
def simulating(what: str, expected_cycles: int | None = None) -> Iterator[Cycles]:
    """Show simulated cycles and their rate."""
    with _activity(what, expected_cycles) as activity:
        yield Cycles(activity, what)
