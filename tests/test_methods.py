"""What every method keeps to. A method joins by lying in `acclimate/methods`: nothing here names one."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from acclimate import methods
from acclimate.data.batches import ArrayInputs, Labelled, Pair, Unlabelled
from acclimate.errors import OptionError
from acclimate.features.network import Network
from acclimate.methods.base import Method
from acclimate.training import Checkpoint, Recipe, train

K, D, N_S, N_T = 3, 10, 40, 30
STEPS = 8

every_method = pytest.mark.parametrize("name", methods.names())


def build(name: str, seed: int = 0) -> Method:
    torch.manual_seed(seed)
    return methods.load(name)(Network(nn.Linear(D, 8), nn.Identity(), 8, bottleneck=6, level="vector"), K)


def pair(seed: int = 0) -> Pair:
    """Three Gaussian classes; the target is shifted."""
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(K, D)) * 3
    y_s, y_t = np.arange(N_S) % K, np.arange(N_T) % K
    x_s = centres[y_s] + rng.normal(size=(N_S, D))
    x_t = centres[y_t] + rng.normal(size=(N_T, D)) + 1.5
    return Pair(ArrayInputs(x_s[None]), y_s, ArrayInputs(x_t[None]), batch_size=8, seed=seed)


def fit(name: str, steps: int = STEPS, resume: Checkpoint | None = None) -> tuple[Method, list]:
    method = build(name)
    return method, list(train(method, pair(), Recipe(steps=steps), resume))


def same(a: Method, b: Method) -> bool:
    a_state, b_state = a.state_dict(), b.state_dict()
    return a_state.keys() == b_state.keys() and all(torch.equal(a_state[k], b_state[k]) for k in a_state)


@every_method
def test_it_steps_and_reports_finite_terms(name: str) -> None:
    method, progress = fit(name)
    assert [p.step for p in progress] == list(range(1, STEPS + 1))
    assert all(np.isfinite(list(p.values().values())).all() for p in progress)
    before = dict(build(name).named_parameters())
    still = [k for k, p in method.named_parameters() if torch.equal(p, before[k])]
    assert not still, f"parameters that training never moved: {still}"


@every_method
def test_it_predicts_logits_for_any_number_of_samples(name: str) -> None:
    method, _ = fit(name)
    method.eval()
    x = torch.randn(7, D)
    assert method.predict(x).shape == (7, K)
    assert torch.allclose(method.predict(x)[:1], method.predict(x[:1]), atol=1e-6)
    assert all(logits.shape == (7,) for logits in method.domain_logits(x).values())


@every_method
def test_it_learns_the_source_and_can_tell_classes_of_the_target(name: str) -> None:
    method, _ = fit(name, steps=150)
    method.eval()
    data = pair()
    y_t = np.arange(N_T) % K
    predicted = method.predict(data.target.batch(np.arange(N_T), None)).argmax(1).numpy()
    assert (predicted == y_t).mean() > 0.8


@every_method
def test_its_state_holds_all_that_prediction_needs(name: str, tmp_path: Path) -> None:
    method, _ = fit(name)
    save_file(method.state_dict(), tmp_path / "m.safetensors")
    other = build(name, seed=1)
    other.load_state_dict(load_file(tmp_path / "m.safetensors"))
    x = torch.randn(7, D)
    assert torch.equal(method.eval().predict(x), other.eval().predict(x))


@every_method
def test_two_runs_are_bit_equal(name: str) -> None:
    assert same(fit(name)[0], fit(name)[0])


@every_method
@pytest.mark.parametrize("stop", [1, 5])
def test_a_resumed_run_is_bit_equal_to_an_unbroken_one(name: str, stop: int, tmp_path: Path) -> None:
    unbroken, _ = fit(name)
    for progress in train(build(name), pair(), Recipe(steps=STEPS)):
        if progress.step == stop:
            progress.checkpoint().save(tmp_path / "last.safetensors")
            break
    torch.manual_seed(99)  # a new process starts with other random numbers
    resumed, rest = fit(name, resume=Checkpoint.load(tmp_path / "last.safetensors"))
    assert [p.step for p in rest] == list(range(stop + 1, STEPS + 1))
    assert same(unbroken, resumed)


def batches() -> tuple[Labelled, Unlabelled]:
    return next(pair().batches(1))


def term_gradients(method: Method, term: str) -> dict[str, Tensor]:
    """Gradient of one term of the first objective that has it, for each parameter that it reaches."""
    method.progress = 0.3
    torch.manual_seed(3)
    objective = next(o for o in method.step(*batches()) if term in o.terms)
    parameters = dict(method.named_parameters())
    grads = torch.autograd.grad(objective.terms[term], list(parameters.values()), allow_unused=True)
    return {name: g for name, g in zip(parameters, grads, strict=True) if g is not None}


@every_method
def test_the_classification_reaches_the_encoder(name: str) -> None:
    grads = term_gradients(build(name), "classification")
    assert grads["net.encoder.weight"].abs().max() > 0


@every_method
def test_an_adversary_learns_and_is_played_against(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The domain loss moves the discriminator down and the encoder up its slope: a discriminator that is constant,
    such as a softmax over one logit, gives neither a gradient, and a missing reversal gives both the same sign.
    """
    module = importlib.import_module(f"acclimate.methods.{name}")
    if not hasattr(module, "reverse"):
        assert not build(name).domain_logits(torch.randn(4, D)), "an adversarial method without a reversal"
        return
    played = term_gradients(build(name), "adversarial")
    monkeypatch.setattr(module, "reverse", lambda x, coefficient: x)
    method = build(name)
    helped = term_gradients(method, "adversarial")
    critic = [k for k in played if k.startswith("critic.")]
    assert critic
    for k in critic:
        assert played[k].abs().max() > 0 or k.endswith("bias")  # a bias before BatchNorm has none
        assert torch.allclose(played[k], helped[k], atol=1e-7)
    assert played["net.encoder.weight"].abs().max() > 1e-6
    assert torch.allclose(
        played["net.encoder.weight"], -method.ramp * helped["net.encoder.weight"], rtol=1e-3, atol=1e-7
    )


@every_method
def test_its_options_are_keywords_with_defaults_and_documented(name: str) -> None:
    cls = methods.load(name)
    options = list(inspect.signature(cls).parameters.values())[2:]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in options)
    doc = inspect.getdoc(cls) or ""
    assert "Differences from the paper:" in doc
    assert all(f"\n    {p.name}: " in doc for p in options)


@every_method
def test_it_is_final(name: str) -> None:
    assert methods.load(name).__bases__ == (Method,)
    assert not methods.load(name).__subclasses__()


def test_a_target_batch_has_no_labels() -> None:
    assert Unlabelled._fields == ("x", "index")


def test_an_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(OptionError, match=r"no method 'wemnett'; did you mean wemnet\?"):
        methods.load("wemnett")
