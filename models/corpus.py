"""English sentences that are on every machine with this package: text of installed packages.

Nothing is downloaded. Documentation strings, ``*.rst``, ``*.md`` and package descriptions are cut
into sentences, and only what reads as prose is kept. What the evaluation uses
(:func:`twillcore.models.text.evaluation_sentences`) is left out, and so is all of
``sklearn.datasets``, where most of it comes from.
"""

import re
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from twillcore.cache import cached_file, content_key
from twillcore.errors import TwillcoreError
from twillcore.models.text import calibration_sentences, evaluation_sentences

VERSION = "3"  # of the filter: change it and a cached corpus is made again
LONGEST_FILE = 2_000_000  # bytes; longer ones are tables
EXCLUDED_FOLDERS = re.compile(r"/(tests?|sklearn/datasets|_vendor|include|lib2to3|idlelib)/")
DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)
MARKUP = re.compile(r"[`*_]+|^\s*(?:[-#>]+|\d+\.)\s", re.MULTILINE)
SENTENCE = re.compile(r"[A-Z][^=\\<>\[\]{}|@/~^+#\"]{28,200}[.!?]")
WORD = re.compile(r"[A-Za-z]+(?:['-][a-z]+)*[,;:.!?)]*|\(?[A-Za-z]+\)?|[0-9]+[,.]?|-")
PLAIN = re.compile(r"[a-z]{2,}")

Progress = Callable[[int, int, str], None]


def sentences_of(text: str) -> Iterator[str]:
    """Yield the sentences of ``text`` that read as prose: no code, no tables, no references."""
    for paragraph in re.split(r"\n\s*\n", text):
        flat = " ".join(MARKUP.sub("", paragraph).split())
        for sentence in re.split(r"(?<=[a-z)][.!?]) (?=[A-Z])", flat):
            if not SENTENCE.fullmatch(sentence):
                continue
            words = sentence.split()
            plain = sum(PLAIN.fullmatch(word.strip(".,;:!?()'")) is not None for word in words)
            if len(words) >= 6 and plain >= 0.7 * len(words) and all(map(WORD.fullmatch, words)):
                yield sentence


def training_sentences(progress: Progress = lambda done, total, name: None) -> list[str]:
    """Return distinct sentences in a fixed order, none of them of the evaluation; cached.

    The text depends on which packages are installed, so its number and hash belong beside every
    figure that was trained with it.

    Raises
    ------
    TwillcoreError
        If there is next to no text.
    """
    files = _files()
    held_out = {*evaluation_sentences(), *calibration_sentences()}
    key = content_key(VERSION, *(str(path) for path in files), *sorted(held_out))

    def make(path: Path) -> None:
        found: dict[str, None] = {}
        for done, file in enumerate(files):
            if done % 200 == 0:
                progress(done, len(files), file.name)
            text = file.read_text(encoding="utf-8", errors="ignore")
            if file.suffix == ".py":
                text = "\n\n".join(DOCSTRING.findall(text))
                if file.stem == "topics" and file.parent.name == "pydoc_data":
                    text = file.read_text(encoding="utf-8").replace("\\n", "\n")
            found.update(dict.fromkeys(sentences_of(text)))
        kept = sorted(sentence for sentence in found if sentence not in held_out)
        path.write_text("\n".join(kept), encoding="utf-8")

    kept = cached_file("corpus", key, ".txt", make).read_text(encoding="utf-8").splitlines()
    if len(kept) < 100:
        raise TwillcoreError(f"only {len(kept)} sentences of text in the installed packages")
    return kept


def _files() -> list[Path]:
    folders = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    files = {
        path
        for folder in folders
        for suffix in ("py", "rst", "md")
        for path in Path(folder).rglob(f"*.{suffix}")
    }
    files |= {path for folder in folders for path in Path(folder).glob("*.dist-info/METADATA")}
    return sorted(
        path
        for path in files
        if not EXCLUDED_FOLDERS.search(path.as_posix()) and path.stat().st_size < LONGEST_FILE
    )
