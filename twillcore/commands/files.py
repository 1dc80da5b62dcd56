"""Files that commands read and write, with errors that name them."""

from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from twillcore.errors import TwillcoreError


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    try:
        path.write_text(text)
    except OSError as error:
        raise TwillcoreError(f"{path}: cannot be written: {error.strerror}") from None


def read_arrays(path: Path) -> dict[str, NDArray]:
    """Return the arrays of an ``.npz`` file by name."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise TwillcoreError(f"{path}: one array without a name; needs an .npz file")
        with loaded as archive:
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise TwillcoreError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, BadZipFile) as error:
        raise TwillcoreError(f"{path}: not an .npz file: {error}") from None


def write_arrays(path: Path, arrays: Mapping[str, NDArray]) -> None:
    """Write an ``.npz`` file (exactly at ``path``, whatever its ending)."""
    try:
        with path.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise TwillcoreError(f"{path}: cannot be written: {error.strerror}") from None


def write_array(path: Path, array: NDArray) -> None:
    """Write an ``.npy`` file (exactly at ``path``, whatever its ending)."""
    try:
        with path.open("wb") as file:
            np.save(file, array)
    except OSError as error:
        raise TwillcoreError(f"{path}: cannot be written: {error.strerror}") from None
