"""Checks that every method passes, for those who write one: no test runner is needed.

    from acclimate.testing import check_method

    check_method(MyMethod)

Each check trains the method for some steps on three Gaussian classes, with a network of one layer, and raises an
AssertionError whose sentence says what the method does wrong. Torch's random numbers stay as they were.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from acclimate.choices import Level
from acclimate.data.batches import Pair
from acclimate.data.inputs import ArrayInputs
from acclimate.errors import AcclimateError
from acclimate.methods import options as method_options
from acclimate.methods import registry
from acclimate.methods.base import Method, Objective
from acclimate.methods.parts.layers import reverse
from acclimate.networks.network import Network
from acclimate.settings import Recipe
from acclimate.training import Checkpoint, Step, train

K, D, N_S, N_T = 3, 10, 40, 30  # classes, numbers of a sample, samples of the source and of the target
STEPS = 8
LONG = 100  # steps in which any method learns the three classes
SHAPES = {"vector": (D,), "map": (D, 3, 2), "image": (3, 16, 16)}


def check_method(method: str | type[Method], **options: Any) -> None:
    """Run every check of this module on a method.

    Args:
        method: The class, or its name, as `path/to/file.py:Class`.
        options: Its hyper-parameters, where its defaults are too large for images of 16 pixels or features of 6
            numbers.

    Raises:
        AssertionError: It fails a check; the message says how to mend it.
        OptionError: There is no such method.
    """
    cls = registry.load(method) if isinstance(method, str) else method
    for check in CHECKS:
        check(cls, **options)


def tiny_network(needs: Level) -> Network:
    """A network of one layer and a bottleneck of 6 numbers, for what a method needs."""
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    match needs:
        case "vector":
            return Network(nn.Linear(D, 8), nn.Identity(), 8, bottleneck=6, level="vector")
        case "map":
            return Network(nn.Conv2d(D, 8, 1), pool, 8, bottleneck=6, level="map", map_shape=(8, 3, 2))
        case "image":
            return Network(nn.Conv2d(3, 8, 8, stride=8), nn.Flatten(), 32, bottleneck=6, level="image")


def tiny_method(cls: type[Method], seed: int = 0, net: Network | None = None, **options: Any) -> Method:
    """The method on a network, `tiny_network` if none is given, with weights that the seed decides."""
    torch.manual_seed(seed)
    return cls(net or tiny_network(cls.needs), K, **options)


def tiny_pair(cls: type[Method]) -> Pair:
    """Three Gaussian classes of what a method needs; in the target they are shifted."""
    rng = np.random.default_rng(5)
    y_s, y_t = np.arange(N_S) % K, np.arange(N_T) % K
    shift = 0.15 if cls.needs == "image" else 1.5
    x_s, x_t = _samples(cls.needs, rng, y_s, 0.0), _samples(cls.needs, rng, y_t, shift)
    return Pair(ArrayInputs(x_s[None]), y_s, ArrayInputs(x_t[None]), batch_size=8, seed=0)


def tiny_batch(cls: type[Method], n: int = 7) -> Tensor:
    """A batch of n samples of the source."""
    return torch.from_numpy(_samples(cls.needs, np.random.default_rng(1), np.arange(n) % K, 0.0))


def first_objectives(method: Method) -> Iterator[Objective]:
    """The objectives of the first step of each stage, at a progress of 0.3."""
    data = tiny_pair(type(method))
    method.train()
    for stage in method.stages(data):
        method.progress = 0.3
        torch.manual_seed(3)
        yield from stage.step(*next(data.batches(1)))


def term_gradients(method: Method, term: str) -> dict[str, Tensor]:
    """The gradient of a term of the first objective that has it, for each parameter that it reaches."""
    objective = next(objective for objective in first_objectives(method) if term in objective.terms)
    parameters = {name: p for name, p in method.named_parameters() if p.requires_grad}
    if not objective.terms[term].requires_grad:
        return {}
    grads = torch.autograd.grad(objective.terms[term], list(parameters.values()), allow_unused=True)
    return {name: grad for name, grad in zip(parameters, grads, strict=True) if grad is not None}


def _of_encoder(gradients: dict[str, Tensor]) -> Tensor:
    """The gradient of the encoder's weight; zero where a term does not reach it."""
    return gradients.get("net.encoder.weight", torch.zeros(1))


def _samples(needs: Level, rng: np.random.Generator, y: npt.NDArray[np.int_], shift: float) -> npt.NDArray[np.float32]:
    """Gaussian classes (N, ...): vectors, or the same at every place of a map or an image."""
    shape = SHAPES[needs]
    scale = 0.1 if needs == "image" else 1.0
    centres = np.random.default_rng(5).normal(size=(K, shape[0])) * (0.5 if needs == "image" else 3)
    x = centres[y].reshape(len(y), shape[0], *[1] * (len(shape) - 1)) + shift
    return (x + rng.normal(size=(len(y), *shape)) * scale).astype(np.float32)


def _recipe(cls: type[Method], steps: int) -> Recipe:
    """The method's own, with a learning rate at which a tiny network learns in a few steps."""
    own = cls.recipe.get("lr", 0.01)
    return Recipe.of(cls, steps=steps, lr=own if "optimizer" in cls.recipe else max(own, 0.01))


def _trained(
    cls: type[Method], options: dict[str, Any], steps: int = STEPS, resume: Checkpoint | None = None
) -> tuple[Method, list[Step]]:
    method = tiny_method(cls, **options)
    try:
        return method, list(train(method, tiny_pair(cls), _recipe(cls, steps), resume))
    except AcclimateError as error:
        raise AssertionError(f"{cls.__name__} cannot be trained on easy data: {error}") from error


def _in_closed_form(cls: type[Method], options: dict[str, Any]) -> bool:
    """Whether it computes its result between the stages, and trains no step."""
    return not list(tiny_method(cls, **options).stages(tiny_pair(cls)))


def _differing(a: nn.Module, b: nn.Module) -> list[str]:
    """The names of what differs between the states of two modules."""
    a_state, b_state = a.state_dict(), b.state_dict()
    common = a_state.keys() & b_state.keys()
    return sorted(
        (a_state.keys() ^ b_state.keys()) | {name for name in common if not torch.equal(a_state[name], b_state[name])}
    )


_own_random_numbers = torch.random.fork_rng(devices=[])


@_own_random_numbers
def check_constructor(cls: type[Method], **options: Any) -> None:
    """Its options have defaults and types, its rows and its recipe hold values that it takes, and its network stays.

    "Stays" means that the network that it is given is afterwards as it was, since others may hold it too.
    """
    try:
        method_options.options(cls)
        for values in (options, *cls.rows.values()):
            method_options.check_options(cls, dict(values))
        Recipe.of(cls)
    except AcclimateError as error:
        raise AssertionError(str(error)) from error
    given = tiny_network(cls.needs)
    untouched = copy.deepcopy(given)
    method = tiny_method(cls, net=given, **options)
    assert (given.dim, str(given), _differing(given, untouched)) == (untouched.dim, str(untouched), []), (
        f"{cls.__name__} changes the network that it is given: let it work on a copy."
    )
    assert method.num_classes == K, f"{cls.__name__} has not passed num_classes to super().__init__(net, num_classes)."
    assert isinstance(method.net, Network), f"{cls.__name__} has not passed net to super().__init__(net, num_classes)."


@_own_random_numbers
def check_training(cls: type[Method], **options: Any) -> None:
    """It takes as many steps as it is asked to, on values that stay finite, and every parameter moves."""
    method, steps = _trained(cls, options)
    in_closed_form = _in_closed_form(cls, options)
    expected = [] if in_closed_form else list(range(1, STEPS + 1))
    assert [step.step for step in steps] == expected, (
        f"{cls.__name__} took {len(steps)} of {STEPS} steps: let the shares of its stages add up to 1."
    )
    before = dict(tiny_method(cls, **options).named_parameters())
    given = "net.encoder" if in_closed_form else "-"  # a closed form has no use for an encoder that is not trained
    trainable = {name: p for name, p in method.named_parameters() if p.requires_grad and not name.startswith(given)}
    still = [name for name, p in trainable.items() if torch.equal(p, before[name])]
    assert not still, (
        f"Training {cls.__name__} never moved {', '.join(still)}: put them into an objective, or let what is not "
        "trained be buffers."
    )


@_own_random_numbers
def check_predictions(cls: type[Method], **options: Any) -> None:
    """It predicts logits (B, K) for any number of samples, and those of a sample do not depend on the others."""
    method, _ = _trained(cls, options)
    method.eval()
    x = tiny_batch(cls)
    with torch.no_grad():
        z, first = method.predict(x), method.predict(x[:1])
        assert z.shape == (len(x), K), (
            f"{cls.__name__}.predict makes {tuple(z.shape)} of {len(x)} samples: return logits {(len(x), K)}."
        )
        assert torch.allclose(z[:1], first, rtol=1e-4, atol=1e-5), (
            f"{cls.__name__}.predict makes something else of a sample alone than among others: let nothing in it "
            "depend on the batch in evaluation mode."
        )
        for name, logits in method.domain_logits(x).items():
            assert logits.shape == (len(x),), (
                f"{cls.__name__}.domain_logits has {tuple(logits.shape)} for {name!r}: return {(len(x),)}."
            )
        for name, weights in method.attention(x).items():
            assert weights.ndim == 3, (
                f"{cls.__name__}.attention has {weights.ndim} axes for {name!r}: return (B, H, W)."
            )
            assert len(weights) == len(x), f"{cls.__name__}.attention lacks samples for {name!r}: return (B, H, W)."


@_own_random_numbers
def check_learning(cls: type[Method], **options: Any) -> None:
    """After 100 steps it tells three classes of the target apart that lie far from each other."""
    method, _ = _trained(cls, options, LONG)
    method.eval()
    with torch.no_grad():
        z = method.predict(tiny_pair(cls).target.batch(np.arange(N_T), None))
    right = float(np.mean(z.argmax(1).numpy() == np.arange(N_T) % K))
    assert right > 0.8, (
        f"{cls.__name__} has {100 * right:.0f} % of an easy target right after {LONG} steps: see that the source's "
        "labels train what predicts, and that the adaptation does not undo it."
    )


@_own_random_numbers
def check_state(cls: type[Method], **options: Any) -> None:
    """Its state holds all that prediction needs: what another one loads predicts the same."""
    method, _ = _trained(cls, options)
    other = tiny_method(cls, seed=1, **options)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "method.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in method.state_dict().items()}, file)
        try:
            other.load_state_dict(load_file(file))
        except RuntimeError as error:
            raise AssertionError(
                f"{cls.__name__} cannot load what it saved: make all parameters and buffers in __init__."
            ) from error
    x = tiny_batch(cls)
    with torch.no_grad():
        assert torch.equal(method.eval().predict(x), other.eval().predict(x)), (
            f"{cls.__name__} predicts otherwise when it was saved and loaded: let all that predict needs be parameters "
            "or buffers."
        )


@_own_random_numbers
def check_repeating(cls: type[Method], **options: Any) -> None:
    """Two trainings with the same seed end with the same bits."""
    differing = _differing(_trained(cls, options)[0], _trained(cls, options)[0])
    assert not differing, (
        f"Two trainings of {cls.__name__} differ in {', '.join(differing)}: draw random numbers from torch alone, and "
        "let no state be shared by several objects."
    )


@_own_random_numbers
def check_resuming(cls: type[Method], **options: Any) -> None:
    """A training that was interrupted goes on and ends with the same bits as one that was not."""
    if _in_closed_form(cls, options):
        return
    unbroken, _ = _trained(cls, options)
    for stop in (1, 5):
        torch.manual_seed(99)  # a new process begins with other random numbers
        resumed, rest = _trained(cls, options, resume=_checkpoint(cls, options, stop))
        assert [step.step for step in rest] == list(range(stop + 1, STEPS + 1)), (
            f"{cls.__name__} takes other steps when it goes on: let its stages depend on nothing that training changes."
        )
        differing = _differing(unbroken, resumed)
        assert not differing, (
            f"{cls.__name__} ends with another {', '.join(differing)} when it was interrupted after step {stop}: let "
            "all that a later step needs be parameters or buffers."
        )


def _checkpoint(cls: type[Method], options: dict[str, Any], stop: int) -> Checkpoint:
    """What a training has saved that ended after this step."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "last.safetensors"
        for step in train(tiny_method(cls, **options), tiny_pair(cls), _recipe(cls, STEPS)):
            if step.step == stop:
                step.checkpoint().save(file)
                break
        return Checkpoint.load(file)


@_own_random_numbers
def check_supervision(cls: type[Method], **options: Any) -> None:
    """The encoder is trained by what the method minimises."""
    if _in_closed_form(cls, options):
        return
    terms = {term for objective in first_objectives(tiny_method(cls, **options)) for term in objective.terms}
    reached = [_of_encoder(term_gradients(tiny_method(cls, **options), term)) for term in sorted(terms)]
    assert any(gradient.abs().max() > 0 for gradient in reached), (
        f"No term of {cls.__name__} has a gradient for the network's encoder: let the features that it uses come from "
        "self.net, without detach."
    )


@_own_random_numbers
def check_adversary(cls: type[Method], **options: Any) -> None:
    """The terms called adversarial move the discriminator down their slope and the encoder up.

    A discriminator that is constant, such as a softmax over one logit, gives neither of them a gradient, and a reversal
    that is missing gives both the same sign. This is seen where the method's module imports `reverse` from
    `acclimate.methods.parts.layers`; elsewhere nothing is checked. What lies behind the reversal is best called critic:
    of parameters with such names each one is checked.
    """
    if getattr(sys.modules[cls.__module__], "reverse", None) is not reverse:
        return
    names = {term for objective in first_objectives(tiny_method(cls, **options)) for term in objective.terms}
    terms = sorted(name for name in names if name.startswith("adversarial"))
    assert terms, (
        f"{cls.__name__} reverses a gradient, and none of its terms ({', '.join(sorted(names))}) has a name that "
        "begins with adversarial: call so what its discriminator minimises."
    )
    for term in terms:
        _check_play(cls, options, term)


def _check_play(cls: type[Method], options: dict[str, Any], term: str) -> None:
    """Compare a term's gradients with those that it has without the reversal."""
    coefficients = set()

    def straight(x: Tensor, coefficient: float) -> Tensor:
        coefficients.add(coefficient)
        return x

    played = term_gradients(tiny_method(cls, **options), term)
    with mock.patch.object(sys.modules[cls.__module__], "reverse", straight):
        helped = term_gradients(tiny_method(cls, **options), term)
    named = f"The term {term} of {cls.__name__}"

    against, along = _of_encoder(played), _of_encoder(helped)
    assert against.abs().max() > 1e-6, (
        f"{named} gives the network's encoder no gradient: see that what the discriminator makes is not constant, and "
        "that the reversal's coefficient is not 0."
    )
    assert float((against * along).sum()) < 0, (
        f"{named} moves the network's encoder the discriminator's way: reverse the features that go into the "
        "discriminator, once."
    )
    if len(coefficients) == 1:
        assert torch.allclose(against, -coefficients.pop() * along, rtol=1e-3, atol=1e-7), (
            f"{named} reaches the network's encoder on a way around the reversal too: detach it there."
        )

    behind = [name for name, gradient in played.items() if torch.allclose(gradient, helped[name], atol=1e-7)]
    assert any(played[name].abs().max() > 1e-6 for name in behind), (
        f"{named} trains no discriminator: see that what it makes is not constant, and that the features are reversed "
        "before it, not its output."
    )
    for name in (name for name in played if name.startswith("critic")):
        assert name in behind, (
            f"{named} reverses the gradient of {name}: reverse the features before the discriminator."
        )
        assert played[name].abs().max() > 0 or name.endswith("bias"), (  # a bias before BatchNorm has none
            f"{named} gives {name} no gradient: see that what the discriminator makes is not constant."
        )


CHECKS: tuple[Callable[..., None], ...] = (
    check_constructor,
    check_training,
    check_predictions,
    check_state,
    check_repeating,
    check_resuming,
    check_supervision,
    check_adversary,
    check_learning,
)
