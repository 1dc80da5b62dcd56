"""Distillation: it learns, it resumes to the very same weights, and says what is wrong."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from twillcore.cache import content_key
from twillcore.errors import TwillcoreError
from twillcore.models import train_minilm
from twillcore.models.checkpoint import Checkpoint
from twillcore.models.distill import History, Recipe, distil, relative_error
from twillcore.models.minilm import load_minilm
from twillcore.models.nm import satisfies
from twillcore.models.pattern import Pattern
from twillcore.models.sr_ste import freeze, sparsify
from twillcore.models.subjects import Training, find_subject

MIXTURE = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))  # inputs are correlated
RECIPE = Recipe(steps=60, rate=3e-3, warm_up=5, decay=1.0)


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8)).requires_grad_(False)
    student = sparsify(copy.deepcopy(teacher).requires_grad_(True), Pattern(2, 4), decay=0.0)
    return student, teacher


def batch(step: int) -> tuple[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return (torch.randn(64, 4, generator=generator) @ MIXTURE,)


def test_loss_falls_and_the_pattern_stays():
    student, teacher = networks()
    seen = []
    history = distil(student, teacher, batch, RECIPE, ["0"], progress=lambda *e: seen.append(e[:2]))
    losses = list(history.loss.values())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert seen[-1] == (60, 60)
    assert sum(history.sad.values()) > 0
    freeze(student)
    assert satisfies(student[0].weight, Pattern(2, 4))


def test_an_interrupted_training_resumes_to_the_same_weights(tmp_path):
    whole, teacher = networks()
    expected = distil(whole, teacher, batch, RECIPE, ["0"])

    class Interrupted(Exception):
        pass

    def interrupt(done, total, text):
        if done == 37:
            raise Interrupted

    student, _ = networks()
    file = Checkpoint(tmp_path / "checkpoint.pt")
    with pytest.raises(Interrupted):
        distil(student, teacher, batch, RECIPE, ["0"], file, 10, interrupt)
    resumed, _ = networks()
    history = distil(resumed, teacher, batch, RECIPE, ["0"], file, 10)
    assert history == expected
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    file = Checkpoint(tmp_path / "checkpoint.pt")
    student, teacher = networks()
    distil(student, teacher, batch, dataclasses.replace(RECIPE, steps=2), [], file)
    with pytest.raises(TwillcoreError, match="of another training: steps was 2, is 60"):
        distil(student, teacher, batch, RECIPE, [], file)
    torch.manual_seed(0)
    other = sparsify(copy.deepcopy(teacher).requires_grad_(True), Pattern(1, 4), decay=0.0)
    with pytest.raises(TwillcoreError, match="of another training: 0 was 2:4, is 1:4"):
        distil(other, teacher, batch, dataclasses.replace(RECIPE, steps=2), [], file)


def test_nan_is_reported_with_the_step():
    student, teacher = networks()

    def poisoned(step):
        return (batch(step)[0] * (torch.nan if step == 3 else 1),)

    with pytest.raises(
        TwillcoreError, match=r"the loss is nan at step 3: lower the rate of 0\.003"
    ):
        distil(student, teacher, poisoned, RECIPE)


def test_nothing_to_train_and_unknown_taps_are_refused():
    student, teacher = networks()
    with pytest.raises(TwillcoreError, match="no submodules 9 to distil from"):
        distil(student, teacher, batch, RECIPE, ["0", "9"])
    with pytest.raises(TwillcoreError, match="no parameter of the student requires a gradient"):
        distil(student.requires_grad_(False), teacher, batch, RECIPE)


def test_relative_error_of_the_mean_is_one():
    wanted = torch.randn(4, 5, 6)
    mean = wanted.flatten(0, -2).mean(0).expand_as(wanted)
    assert relative_error(mean, wanted).item() == pytest.approx(1.0)


def test_minilm_trains_with_what_the_command_says(monkeypatch, tmp_path):
    calls = []

    def distilled(student, teacher, batches, recipe, taps, checkpoint, progress, attach):
        calls.append(
            (recipe.steps, checkpoint.path, len(taps), batches(0)[0].shape == batches(0)[1].shape)
        )
        assert any(p.requires_grad for p in student.encoder.parameters())
        known = {"method": "sr-ste", "seed": 3, "data": content_key("One two three.")[:12]}
        assert checkpoint.training == known
        return History(sad={0: 0.25, 1: 0.5})

    monkeypatch.setattr(train_minilm, "distil", distilled)
    monkeypatch.setattr(train_minilm, "training_sentences", lambda progress: ["One two three."])
    file = Checkpoint(tmp_path / "checkpoint.pt", {"method": "sr-ste"})
    training = Training(7, 3, file)
    sad = find_subject("minilm").train(load_minilm(), training, lambda optimiser: None)
    assert sad == 0.75
    assert calls == [(7, file.path, 6, True)]
