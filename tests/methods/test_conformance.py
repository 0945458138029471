"""What every method keeps to. A method joins by lying in `acclimate/methods`: nothing here names one."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from acclimate.choices import Family, Level
from acclimate.data.batches import Pair, Unlabelled
from acclimate.data.inputs import ArrayInputs
from acclimate.errors import OptionError
from acclimate.methods import registry
from acclimate.methods.base import Method, Objective
from acclimate.methods.options import check_options, options
from acclimate.networks.network import Network
from acclimate.settings import RECIPE, Recipe
from acclimate.training import Checkpoint, Step, train

K, D, N_S, N_T = 3, 10, 40, 30
STEPS = 8

every_method = pytest.mark.parametrize("name", registry.names())


SHAPES = {"vector": (D,), "map": (D, 3, 2), "image": (3, 16, 16)}
SMALL = {"hidden": 32, "image_size": 16, "width": 4, "noise": 8}  # of the options that make networks large


def network(needs: Level) -> Network:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    match needs:
        case "vector":
            return Network(nn.Linear(D, 8), nn.Identity(), 8, bottleneck=6, level="vector")
        case "map":
            return Network(nn.Conv2d(D, 8, 1), pool, 8, bottleneck=6, level="map", map_shape=(8, 3, 2))
        case "image":
            encoder = nn.Conv2d(3, 8, 8, stride=8)
            return Network(encoder, nn.Flatten(), 32, bottleneck=6, level="image")


def build(name: str, seed: int = 0, net: Network | None = None) -> Method:
    torch.manual_seed(seed)
    cls = registry.load(name)
    small = {option: value for option, value in SMALL.items() if option in options(name)}
    return cls(net or network(cls.needs), K, **small)


def samples(name: str, rng: np.random.Generator, y: npt.NDArray[Any], shift: float) -> npt.NDArray[np.float32]:
    """Gaussian classes (N, ...): vectors, or the same at every place of a map or an image."""
    shape = SHAPES[registry.load(name).needs]
    centres = np.random.default_rng(5).normal(size=(K, shape[0])) * (3 if len(shape) < 3 or shape[0] == D else 0.5)
    x = centres[y].reshape(len(y), shape[0], *[1] * (len(shape) - 1)) + shift
    return (x + rng.normal(size=(len(y), *shape)) * (1 if shape[0] == D else 0.1)).astype(np.float32)


def pair(name: str, seed: int = 0) -> Pair:
    """Three Gaussian classes; the target is shifted."""
    rng = np.random.default_rng(5)
    y_s, y_t = np.arange(N_S) % K, np.arange(N_T) % K
    shift = 0.15 if registry.load(name).needs == "image" else 1.5
    x_s, x_t = samples(name, rng, y_s, 0.0), samples(name, rng, y_t, shift)
    return Pair(ArrayInputs(x_s[None]), y_s, ArrayInputs(x_t[None]), batch_size=8, seed=seed)


def some(name: str, n: int = 7) -> Tensor:
    return torch.from_numpy(samples(name, np.random.default_rng(1), np.arange(n) % K, 0.0))


def in_closed_form(name: str) -> bool:
    return not list(build(name).stages(pair(name)))


def fit(name: str, steps: int = STEPS, resume: Checkpoint | None = None) -> tuple[Method, list[Step]]:
    method = build(name)
    return method, list(train(method, pair(name), recipe(name, steps), resume))


@cache
def fitted_once(name: str) -> tuple[Method, list[Step]]:
    return fit(name)


def fitted(name: str) -> Method:
    """A method after a run, for one test alone."""
    return copy.deepcopy(fitted_once(name)[0])


def recipe(name: str, steps: int) -> Recipe:
    """The method's own, with the learning rate that lets a tiny network learn in a few steps."""
    own = registry.load(name).recipe
    return Recipe.of(
        registry.load(name), steps=steps, lr=max(own.get("lr", 0.01), 0.01 if "optimizer" not in own else 0)
    )


def same(a: nn.Module, b: nn.Module) -> bool:
    a_state, b_state = a.state_dict(), b.state_dict()
    return a_state.keys() == b_state.keys() and all(torch.equal(a_state[k], b_state[k]) for k in a_state)


@every_method
def test_the_network_it_is_given_stays_as_it_was(name: str) -> None:
    given = network(registry.load(name).needs)
    untouched = copy.deepcopy(given)
    build(name, net=given)
    assert given.dim == untouched.dim
    assert str(given) == str(untouched)
    assert same(given, untouched)


@every_method
def test_it_steps_and_reports_finite_terms(name: str) -> None:
    method, progress = fitted_once(name)
    assert [p.step for p in progress] == ([] if in_closed_form(name) else list(range(1, STEPS + 1)))
    assert all(np.isfinite(list(p.values().values())).all() for p in progress)
    before = dict(build(name).named_parameters())
    encoder = in_closed_form(name)  # which has nothing of its own to train
    still = [
        k
        for k, p in method.named_parameters()
        if torch.equal(p, before[k]) and not (encoder and k.startswith("net.encoder"))
    ]
    assert not still, f"parameters that training never moved: {still}"


@every_method
def test_it_predicts_logits_for_any_number_of_samples(name: str) -> None:
    method = fitted(name).eval()
    x = some(name)
    assert method.predict(x).shape == (7, K)
    assert torch.allclose(method.predict(x)[:1], method.predict(x[:1]), rtol=1e-4, atol=1e-5)
    assert all(logits.shape == (7,) for logits in method.domain_logits(x).values())
    assert all(w.shape[0] == 7 and w.ndim == 3 for w in method.attention(x).values())


@every_method
def test_it_learns_the_source_and_can_tell_classes_of_the_target(name: str) -> None:
    method, _ = fit(name, steps=100)
    method.eval()
    data = pair(name)
    y_t = np.arange(N_T) % K
    predicted = method.predict(data.target.batch(np.arange(N_T), None)).argmax(1).numpy()
    assert (predicted == y_t).mean() > 0.8


@every_method
def test_its_state_holds_all_that_prediction_needs(name: str, tmp_path: Path) -> None:
    method = fitted(name)
    save_file(method.state_dict(), tmp_path / "m.safetensors")
    other = build(name, seed=1)
    other.load_state_dict(load_file(tmp_path / "m.safetensors"))
    x = some(name)
    assert torch.equal(method.eval().predict(x), other.eval().predict(x))


@every_method
def test_two_runs_are_bit_equal(name: str) -> None:
    assert same(fitted_once(name)[0], fit(name)[0])


@every_method
@pytest.mark.parametrize("stop", [1, 5])
def test_a_resumed_run_is_bit_equal_to_an_unbroken_one(name: str, stop: int, tmp_path: Path) -> None:
    if in_closed_form(name):
        return
    for progress in train(build(name), pair(name), recipe(name, STEPS)):
        if progress.step == stop:
            progress.checkpoint().save(tmp_path / "last.safetensors")
            break
    torch.manual_seed(99)  # a new process starts with other random numbers
    resumed, rest = fit(name, resume=Checkpoint.load(tmp_path / "last.safetensors"))
    assert [p.step for p in rest] == list(range(stop + 1, STEPS + 1))
    assert same(fitted_once(name)[0], resumed)


def objectives(method: Method, name: str) -> Iterator[Objective]:
    """The objectives of the first step of each stage."""
    method.train()
    for stage in method.stages(pair(name)):
        method.progress = 0.3
        torch.manual_seed(3)
        yield from stage.step(*next(pair(name).batches(1)))


def term_gradients(method: Method, name: str, term: str) -> dict[str, Tensor]:
    """Gradient of one term of the first objective that has it, for each parameter that it reaches."""
    objective = next(o for o in objectives(method, name) if term in o.terms)
    parameters = dict(method.named_parameters())
    grads = torch.autograd.grad(objective.terms[term], list(parameters.values()), allow_unused=True)
    return {name: g for name, g in zip(parameters, grads, strict=True) if g is not None}


@every_method
def test_the_classification_reaches_the_encoder(name: str) -> None:
    if not in_closed_form(name):
        grads = term_gradients(build(name), name, "classification")
        assert grads["net.encoder.weight"].abs().max() > 0


@every_method
def test_an_adversary_learns_and_is_played_against(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The domain loss moves the discriminator down and the encoder up its slope: a discriminator that is constant,
    such as a softmax over one logit, gives neither a gradient, and a missing reversal gives both the same sign.
    """
    module = importlib.import_module(f"acclimate.methods.{name}")
    if not hasattr(module, "reverse"):
        apart = [o.over for o in objectives(build(name), name) if o.over]
        assert apart or not build(name).domain_logits(some(name)), "an adversarial method that does not play"
        return
    terms = {t for o in objectives(build(name), name) for t in o.terms if t.startswith("adversarial")}
    assert terms
    for term in terms:
        played = term_gradients(build(name), name, term)
        with monkeypatch.context() as patch:
            patch.setattr(module, "reverse", lambda x, coefficient: x)
            method = build(name)
            helped = term_gradients(method, name, term)
        critic = [k for k in played if k.startswith("critic")]
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
    cls = registry.load(name)
    options = list(inspect.signature(cls).parameters.values())[2:]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in options)
    doc = inspect.getdoc(cls) or ""
    assert "Differences from the paper:" in doc
    assert cls.paper
    assert 2000 < cls.year < 2100
    assert cls.family in get_args(Family)
    assert cls.rows
    for values in cls.rows.values():
        check_options(name, dict(values))
    assert cls.recipe.keys() <= {name for name, one in RECIPE.items() if one.setting.of_method}
    assert isinstance(Recipe.of(cls), Recipe)
    assert all(f"\n    {p.name}: " in doc for p in options)


@every_method
def test_it_is_final(name: str) -> None:
    assert registry.load(name).__bases__ == (Method,)
    assert not registry.load(name).__subclasses__()


def test_a_target_batch_has_no_labels() -> None:
    assert Unlabelled._fields == ("x", "index")


def test_an_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(OptionError, match=r"no method 'wemnett'; did you mean wemnet\?"):
        registry.load("wemnett")
