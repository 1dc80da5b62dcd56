"""Trainings that are interrupted resume to the very same weights, and refuse other checkpoints."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from twillcore.cli import app
from twillcore.commands import candidate
from twillcore.errors import TwillcoreError
from twillcore.models import digits, subjects, vision
from twillcore.models.checkpoint import Checkpoint
from twillcore.models.compress import compress
from twillcore.models.digits_cnn import DigitsCNN
from twillcore.models.digits_vit import DigitsViT
from twillcore.models.domino import Search, search_scheme
from twillcore.models.policy import LayerPolicy, Policy


class Interrupted(Exception):
    """What stands for a signal."""


@pytest.fixture(autouse=True)
def few_digits(monkeypatch, tmp_path):
    """Let the dense networks be there at once, and an epoch be four steps."""
    torch.manual_seed(0)
    networks = DigitsViT().eval(), DigitsCNN().eval()
    monkeypatch.setattr(subjects, "train_dense", lambda *_, **__: networks[0])
    monkeypatch.setattr(vision, "train_digits_cnn", lambda **_: networks[1])
    monkeypatch.setattr(subjects, "load_digits", lambda: few(448))
    monkeypatch.setattr(candidate, "program_cycles", lambda *_, **__: 1000)  # which takes long
    monkeypatch.setenv("TWILLCORE_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def few(count):
    data = digits.load_digits()
    return digits.Digits(
        data.train[:count], data.train_labels[:count], data.test[:50], data.test_labels[:50]
    )


def command(folder, network, *options):
    """Run ``twillcore compress``; return what it wrote."""
    arguments = ["compress", network, *options, "-o", folder, "--json"]
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if done.exception is not None:
        raise done.exception
    files = sorted(folder.rglob("model.pt"))
    assert files
    weights = [torch.load(file, weights_only=True) for file in files]
    return weights, json.loads(done.stdout)


def interrupt_after(monkeypatch, saves):
    """Let the training be interrupted just after it has saved so often."""
    whole, count = Checkpoint.save, []

    def save(self, *arguments):
        whole(self, *arguments)
        count.append(self.path)
        if len(count) == saves:
            raise Interrupted

    monkeypatch.setattr(Checkpoint, "save", save)
    return whole


VIT = ("digits-vit", "--config", "tiny", "--target")
SR_STE = (*VIT, "2:4", "--method", "sr-ste", "--steps", 3)
#: Trainings by name, and after how many checkpoints each is interrupted.
TRAININGS = {
    "sr-ste": (SR_STE, 2),
    "one-shot": (("digits-cnn", "--target", "2:4", "--steps", 3), 1),
    "idp": ((*VIT, "2:4", "--method", "idp", "--steps", 2), 3),
    "trp": ((*VIT, "product-cycles=13000", "--method", "trp", "--steps", 4), 3),
    "factors": ((*VIT, "product-cycles=13000", "--method", "low-rank", "--steps", 2), 1),
    "bits": ((*VIT, "bits=4", "--method", "ompq", "--steps", 3), 2),
}


@pytest.mark.parametrize("training", TRAININGS)
def test_every_training_resumes_to_the_same_weights(tmp_path, monkeypatch, training):
    arguments, saves = TRAININGS[training]
    weights, figures = command(tmp_path / "whole", *arguments)
    save = interrupt_after(monkeypatch, saves)
    with pytest.raises(Interrupted):
        command(tmp_path / "again", *arguments)
    assert not list((tmp_path / "again").rglob("model.pt"))
    monkeypatch.setattr(Checkpoint, "save", save)
    resumed, same = command(tmp_path / "again", *arguments)
    assert len(resumed) == len(weights) == (2 if training == "idp" else 1)
    for a, b in zip(resumed, weights, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a | b)
    assert same == figures


def small():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8))
    return net, [(torch.randn(32, 16),) for _ in range(3)]


def test_a_search_resumes_to_the_same_scheme(tmp_path, monkeypatch):
    def search(file):
        net, data = small()
        found = search_scheme(
            net, lambda step: net(*data[step % 3]).square().mean(), 0.5, {"0": 1.0, "2": 1.0},
            Search(review=10, decay=5.0), checkpoint=file,
        )  # fmt: skip
        return found, net.state_dict()

    scheme, weights = search(None)
    file = Checkpoint(tmp_path / "search.pt")
    save = interrupt_after(monkeypatch, 3)
    with pytest.raises(Interrupted):
        search(file)
    monkeypatch.setattr(Checkpoint, "save", save)
    again, same = search(file)
    assert again == scheme
    assert all(torch.equal(same[name], weights[name]) for name in weights)
    with pytest.raises(TwillcoreError, match=r"density was 0\.5, is 0\.25\. Delete it"):
        search_scheme(*small()[:1], lambda step: None, 0.25, {}, Search(review=10, decay=5.0),
                      checkpoint=file)  # fmt: skip


def test_what_a_method_searches_for_is_beside_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "twillcore.models.compress.Search", lambda group: Search(group, review=10, decay=5.0)
    )
    net, data = small()
    file = tmp_path / "checkpoint.pt"
    options = {"data": data, "config": "tiny", "method": "domino", "checkpoint": file}
    compress(net, data[0], target="density=0.95", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["search-checkpoint.pt"]
    with pytest.raises(TwillcoreError, match=r"search-checkpoint\.pt is of another"):
        compress(net, data[0], target="density=0.8", **options)


def test_a_checkpoint_of_another_command_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    interrupt_after(monkeypatch, 1)
    with pytest.raises(Interrupted):
        command(folder, *SR_STE)
    file = folder / "checkpoint.pt"

    def refusal(*changes):
        with pytest.raises(TwillcoreError) as caught:
            command(folder, *SR_STE, *changes)
        assert str(caught.value).endswith(". Delete it, or take another folder")
        return str(caught.value).removesuffix(". Delete it, or take another folder")

    start = f"{file} is of another training: "
    assert refusal("--target", "1:4") == start + "target was 2:4, is 1:4"
    assert refusal("--seed", 1) == start + "seed was 0, is 1"
    assert refusal("--steps", 4) == start + "steps was 3, is 4"
    assert refusal("--method", "magnitude") == start + "method was sr-ste, is magnitude"
    assert "config was" in refusal("--config", "u256")
    weights = {name: value + 1 for name, value in DigitsViT().state_dict().items()}
    torch.save(weights, tmp_path / "other.pt")
    assert "weights was" in refusal("--start", tmp_path / "other.pt")
    monkeypatch.setattr(subjects, "load_digits", lambda: few(449))
    assert "data was" in refusal()

    monkeypatch.setattr(subjects, "load_digits", lambda: few(448))
    Policy("digits-vit", {"blocks.1.up": LayerPolicy("1:4")}).save(tmp_path / "policy.toml")
    options = [option for option in SR_STE if option not in ("--target", "2:4")]
    with pytest.raises(TwillcoreError, match=r"target was 2:4, is policy [0-9a-f]{12}"):
        command(folder, *options, "--policy", tmp_path / "policy.toml")


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(tmp_path, monkeypatch, keep):
    folder = tmp_path / "out"
    save = interrupt_after(monkeypatch, 1)
    with pytest.raises(Interrupted):
        command(folder, *SR_STE)
    file = folder / "checkpoint.pt"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole))])
    monkeypatch.setattr(Checkpoint, "save", save)
    with pytest.raises(TwillcoreError) as caught:
        command(folder, *SR_STE)
    assert str(caught.value) == (
        f"{file} is damaged, or no checkpoint of this version: delete it to train from the start"
    )
    torch.save({"step": 1}, file)
    with pytest.raises(TwillcoreError, match="no checkpoint of this version"):
        command(folder, *SR_STE)
    file.unlink()
    command(folder, *SR_STE)


def test_a_half_written_file_is_not_the_checkpoint(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    weights, _ = command(tmp_path / "whole", *SR_STE)
    write, count = torch.save, []

    def half(state, path):
        if path.name.startswith(".checkpoint"):
            count.append(path)
            if len(count) == 2:
                path.write_bytes(b"half")
                raise Interrupted
        write(state, path)

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(Interrupted):
        command(folder, *SR_STE)
    resumed, _ = command(folder, *SR_STE)
    assert all(torch.equal(resumed[0][name], weights[0][name]) for name in weights[0])


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    net, _ = small()
    optimiser = torch.optim.AdamW(net.parameters())
    with pytest.raises(TwillcoreError, match=r"checkpoint.pt: cannot be written: "):
        Checkpoint(tmp_path / "file" / "checkpoint.pt").save(net, optimiser, {})


def test_signals(tmp_path, monkeypatch):
    """A process that is ended by SIGINT, and one by SIGKILL, lose no finished epoch."""
    monkeypatch.setattr(subjects, "load_digits", digits.load_digits)
    folder, arguments = tmp_path / "out", (*SR_STE[:-1], 16)
    weights, figures = command(tmp_path / "whole", *arguments)  # leaves the dense network cached
    file, before = folder / "checkpoint.pt", 0
    for number in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(
            [sys.executable, "-m", "twillcore.cli", "compress", *map(str, arguments), "-o", folder],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            # where tests run in the background, shells have it ignored, which is inherited
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        deadline = time.monotonic() + 120
        while not file.is_file() or file.stat().st_mtime_ns == before:
            assert process.poll() is None, "ended before its signal"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait() != 0
        assert not (folder / "model.pt").exists()
        before = file.stat().st_mtime_ns
    assert torch.load(file, weights_only=True)["progress"]["epoch"] >= 2
    resumed, same = command(folder, *arguments)
    assert all(torch.equal(resumed[0][name], weights[0][name]) for name in weights[0])
    assert same == figures
