"""Results that take seconds to make, kept between runs under the hash of what went into them."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from twillcore.errors import TwillcoreError


def cache_folder() -> Path:
    """Return ``$TWILLCORE_CACHE``, or ``~/.cache/twillcore``."""
    return Path(os.environ.get("TWILLCORE_CACHE") or Path.home() / ".cache" / "twillcore")


def content_key(*parts: str | bytes) -> str:
    """Return a hash that differs whenever any part does."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


def source_key(*parts: str) -> str:
    """Return a hash of the contract's sources and of those in the folders ``parts``."""
    package = Path(__file__).parent
    files = [path for folder in ("", *parts) for path in sorted((package / folder).glob("*.py"))]
    return content_key(*(path.read_bytes() for path in files))


def cached_file(stem: str, key: str, suffix: str, make: Callable[[Path], None]) -> Path:
    """Return the file ``stem-key.suffix`` of the cache; ``make`` writes it to the path it gets.

    Files of the same stem with other keys are out of date and removed when it is made. A run that
    is interrupted, or two at once, never leave half a file.

    Raises
    ------
    TwillcoreError
        If the cache cannot be written.
    """
    path = cache_folder() / f"{stem}-{key}{suffix}"
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
    except OSError as error:
        raise TwillcoreError(
            f"cannot write to the cache {path.parent} ({error.strerror}):"
            " set TWILLCORE_CACHE to a writable folder"
        ) from None
    try:
        make(Path(temporary))
        for old in path.parent.glob(f"{stem}-*{suffix}"):
            if len(old.name) == len(path.name):
                old.unlink(missing_ok=True)
        os.replace(temporary, path)  # noqa: PTH105, one atomic step
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path
