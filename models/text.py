"""Sentences to calibrate with and, apart from them, sentences to measure with."""

import importlib.util
import re
from pathlib import Path

from twillcore.errors import TwillcoreError

HERE = Path(__file__).parent


def calibration_sentences() -> list[str]:
    """Return our own calibration sentences."""
    return _lines("calibration.txt")


def evaluation_sentences(count: int | None = None) -> list[str]:
    """Return ``count`` sentences (all, if None): our own and some of scikit-learn's documentation.

    None of them is a calibration sentence.

    Raises
    ------
    TwillcoreError
        If more are asked for than there are, or scikit-learn is not installed.
    """
    sentences = _lines("evaluation.txt")
    if count is None or count > len(sentences):
        sentences += _data_set_descriptions()
    known = set(calibration_sentences())
    sentences = [sentence for sentence in dict.fromkeys(sentences) if sentence not in known]
    if count is not None and not 1 <= count <= len(sentences):
        raise TwillcoreError(f"evaluation sentences must be 1..{len(sentences)}, not {count}")
    return sentences[:count]


def _lines(name: str) -> list[str]:
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


#: Tables, directives, formulas, references to code or literature: no sentences.
NOT_PROSE = re.compile(
    r"[|=\\<>\[]|\.\. |:[a-z]*:|--|\. - |[a-z]\.[a-z]|~/|\d-\d"
    r"|Proceedings|Journal|NISTIR|Dept\.|University of Singapore|School of"
)


def _data_set_descriptions() -> list[str]:
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise TwillcoreError("evaluation text comes with scikit-learn: pip install scikit-learn")
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "descr"
    sentences = []
    for path in sorted(folder.glob("*.rst")):
        for paragraph in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")):
            text = " ".join(re.sub(r"[`*_]+|^- |~{3,}|-{3,}|={3,}", "", paragraph).split())
            sentences += [
                sentence
                for sentence in re.split(r"(?<=[a-z)][.!?]) (?=[A-Z])", text)
                if re.fullmatch(r"[A-Z].{30,230}[.!?]", sentence) and not NOT_PROSE.search(sentence)
            ]
    return sentences
