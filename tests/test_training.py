"""The trainer: what it minimises over which modules, its schedules, accumulation, divergence, stages, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from acclimate.data.batches import Labelled, Pair, Unlabelled
from acclimate.data.inputs import ArrayInputs
from acclimate.errors import DivergedError, OptionError
from acclimate.methods.base import Method, Objective, Stage
from acclimate.networks.network import Network
from acclimate.settings import Recipe
from acclimate.training import Checkpoint, make_optimizer, train

D, K = 5, 3


def pair(batch_size: int = 6, n: int = 24) -> Pair:
    rng = np.random.default_rng(0)
    x_s, x_t = rng.normal(size=(2, n, D))
    return Pair(ArrayInputs(x_s[None]), np.arange(n) % K, ArrayInputs(x_t[None]), batch_size=batch_size)


def network() -> Network:
    return Network(nn.Linear(D, 4), nn.Identity(), 4, bottleneck=0, level="vector")


class Alternating(Method):
    """Two objectives a step over different modules, and a count of the steps in a buffer."""

    def __init__(self) -> None:
        super().__init__(network(), K)
        self.classifier = nn.Linear(4, K)
        self.other = nn.Linear(4, K)
        self.register_buffer("steps", torch.zeros(()))
        self.seen: list[Tensor] = []

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        yield Objective(self.net, self.classifier, source=cross_entropy(self.classifier(self.net(s.x)), s.y))
        self.seen.append(self.net.encoder.weight.detach().clone())
        yield Objective(self.other, target=self.other(self.net(t.x)).square().mean())
        self.steps = self.steps + 1

    def predict(self, x: Tensor) -> Tensor:
        return self.classifier(self.net(x))


def test_each_objective_moves_its_modules_alone_as_separate_optimisers_would() -> None:
    torch.manual_seed(0)
    method = Alternating().double()
    torch.manual_seed(0)
    by_hand = Alternating().double()
    recipe = Recipe(steps=5)
    for _ in train(method, double(pair()), recipe):
        pass

    def sgd(*groups: tuple[nn.Module, float]) -> torch.optim.SGD:
        return torch.optim.SGD(
            [{"params": list(m.parameters()), "lr": lr} for m, lr in groups],
            momentum=0.9,
            nesterov=True,
            weight_decay=1e-3,
        )

    first = sgd((by_hand.net, 0.001), (by_hand.classifier, 0.01))
    second = sgd((by_hand.other, 0.01))
    for step, (s, t) in enumerate(double(pair()).batches(5)):
        for optimizer in (first, second):
            for group in optimizer.param_groups:
                group.setdefault("first_lr", group["lr"])
                group["lr"] = group["first_lr"] * (1 + 10 * step / 5) ** -0.75
        by_hand.zero_grad()
        cross_entropy(by_hand.classifier(by_hand.net(s.x)), s.y).backward()
        first.step()
        by_hand.zero_grad()
        by_hand.other(by_hand.net(t.x)).square().mean().backward()
        second.step()
    for a, b in zip(method.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


class Plain(Alternating):
    """Its network's updates by SGD have no momentum."""

    @property
    def without_momentum(self) -> tuple[nn.Module, ...]:
        return (self.net,)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_network_without_momentum_and_adam_are_as_separate_optimisers(optimizer: Any) -> None:
    torch.manual_seed(0)
    method = Plain().double()
    torch.manual_seed(0)
    by_hand = Plain().double()
    method.net.pretrained = by_hand.net.pretrained = False
    recipe = Recipe(steps=5, optimizer=optimizer, lr=0.05, momentum=0.7, weight_decay=0.02, schedule="constant")
    for _ in train(method, double(pair()), recipe):
        pass

    def make(module: nn.Module, momentum: float) -> torch.optim.Optimizer:
        if optimizer == "adam":
            return torch.optim.Adam(module.parameters(), lr=0.05, betas=(0.7, 0.999), weight_decay=0.02)
        nesterov = momentum > 0
        return torch.optim.SGD(module.parameters(), lr=0.05, momentum=momentum, nesterov=nesterov, weight_decay=0.02)

    of_net, of_classifier, of_other = make(by_hand.net, 0.0), make(by_hand.classifier, 0.7), make(by_hand.other, 0.7)
    for s, t in double(pair()).batches(5):
        by_hand.zero_grad()
        cross_entropy(by_hand.classifier(by_hand.net(s.x)), s.y).backward()
        of_net.step()
        of_classifier.step()
        by_hand.zero_grad()
        by_hand.other(by_hand.net(t.x)).square().mean().backward()
        of_other.step()
    for a, b in zip(method.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_a_loop_of_one_s_own_over_the_objectives_is_the_trainer() -> None:
    recipe, ends = Recipe(steps=5, schedule="constant"), []
    torch.manual_seed(0)
    trained, by_hand = Alternating(), Alternating()
    by_hand.load_state_dict(trained.state_dict())
    for _ in train(trained, pair(), recipe):
        pass
    optimizer = make_optimizer(by_hand, recipe)
    for s, t in pair().batches(5):
        for objective in by_hand.step(s, t):
            assert torch.equal(objective.loss, sum(objective.terms.values(), torch.zeros(())))
            optimizer.zero_grad()
            objective.loss.backward(inputs=objective.parameters(by_hand))
            optimizer.step()
        ends.append(by_hand.state_dict()["steps"].item())
    assert ends == [1, 2, 3, 4, 5]
    assert all(torch.equal(tensor, by_hand.state_dict()[name]) for name, tensor in trained.state_dict().items())


def double(data: Pair) -> Pair:
    """The same batches in float64."""
    plain = data.batch
    data.batch = lambda step: tuple(b._replace(x=b.x.double()) for b in plain(step))  # type: ignore[method-assign]
    return data


def test_when_a_step_resumes_the_weights_have_moved() -> None:
    method = Alternating()
    before = method.net.encoder.weight.detach().clone()
    next(train(method, pair(), Recipe(steps=1)))
    assert not torch.equal(method.seen[0], before)
    assert torch.equal(method.seen[0], method.net.encoder.weight)  # the second objective left the network alone


def test_the_code_behind_the_last_objective_runs() -> None:
    method = Alternating()
    for _ in train(method, pair(), Recipe(steps=4)):
        pass
    assert method.steps == 4


def test_accumulated_batches_equal_one_batch_of_their_sum() -> None:
    """With losses that are means and no BatchNorm; the four batches of 6 hold the samples of the two of 12."""
    torch.manual_seed(0)
    small = Alternating().double()
    torch.manual_seed(0)
    large = Alternating().double()
    for _ in train(small, double(pair(6)), Recipe(steps=2, batch_size=6, accumulate=2)):
        pass
    for _ in train(large, double(pair(12)), Recipe(steps=2, batch_size=12)):
        pass
    assert small.steps == 4
    for a, b in zip(small.parameters(), large.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_batches_that_yield_unequal_numbers_of_objectives_cannot_be_accumulated() -> None:
    method = Alternating()
    plain, calls = method.step, []

    def step(s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        calls.append(1)
        number = len(calls)
        yield from plain(s, t)
        if number == 2:
            yield from plain(s, t)

    method.step = step  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="same number of objectives"):
        list(train(method, pair(), Recipe(steps=1, accumulate=2)))


def test_schedules_on_both_clocks() -> None:
    paper, tll = Recipe(steps=200), Recipe(steps=200, schedule="tll")
    assert [paper.progress(i) for i in (0, 50, 200)] == [0, 0.25, 1]
    assert paper.lr_factor(200) == pytest.approx(11**-0.75)
    assert tll.lr_factor(5000) == pytest.approx((1 + 0.001 * 5000) ** -0.75)
    assert 0.01 * tll.lr_factor(5000) == pytest.approx(0.002608, abs=1e-6)
    assert Recipe(schedule="constant").lr_factor(700) == 1


def test_pretrained_layers_learn_at_a_tenth_and_new_ones_do_not() -> None:
    method = Alternating()
    lr = {id(p): g["multiplier"] for g in make_optimizer(method, Recipe()).param_groups for p in g["params"]}
    assert lr[id(method.net.encoder.weight)] == 0.1
    assert lr[id(method.classifier.weight)] == 1
    method.net.pretrained = False
    assert {g["multiplier"] for g in make_optimizer(method, Recipe()).param_groups} == {1}


def test_progress_reports_the_terms_of_all_objectives_and_the_learning_rate() -> None:
    progress = list(train(Alternating(), pair(), Recipe(steps=3)))
    assert progress[-1].values().keys() == {"source", "target"}
    assert [p.step for p in progress] == [1, 2, 3]
    assert progress[0].lr == 0.01


def test_clipping_bounds_the_step() -> None:
    method = Alternating()
    before = torch.cat([p.detach().flatten() for p in method.parameters()])
    next(train(method, pair(), Recipe(steps=1, clip=1e-3, weight_decay=0, momentum=0, lr=1, backbone_lr=1)))
    after = torch.cat([p.detach().flatten() for p in method.parameters()])
    assert 0 < (after - before).norm() <= 2**0.5 * 1e-3 * 1.001  # two objectives, each of norm 0.001 at most


class Failing(Method):
    """Yields a term or a gradient that is not finite at its third step."""

    def __init__(self, how: str) -> None:
        super().__init__(network(), K)
        self.classifier = nn.Linear(4, K)
        self.how = how
        self.steps = 0

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        self.steps += 1
        loss = cross_entropy(self.predict(s.x), s.y)
        extra = mse_loss(self.net(t.x), torch.zeros(()).expand(6, 4))
        if self.steps == 3 and self.how == "term":
            extra = extra * float("nan")
        if self.steps == 3 and self.how == "gradient":
            extra = (extra - extra.detach()).sqrt()  # 0, with an infinite slope
        if self.steps == 3 and self.how == "norm":
            extra = extra * 1e30  # every slope is finite, the sum of their squares is not
        yield Objective(classification=loss, penalty=extra)

    def predict(self, x: Tensor) -> Tensor:
        return self.classifier(self.net(x))


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("term", r"step 3: penalty is not finite"),
        ("gradient", r"step 3: the gradient of net\.encoder\.weight"),
        ("norm", r"step 3: the norm of the gradient"),
    ],
)
def test_what_is_not_finite_is_named_and_leaves_the_weights_alone(how: str, sentence: str) -> None:
    method = Failing(how)
    run = train(method, pair(), Recipe(steps=5))
    next(run), next(run)
    before = [p.detach().clone() for p in method.parameters()]
    with pytest.raises(DivergedError, match=sentence):
        next(run)
    assert all(torch.equal(a, b) for a, b in zip(before, method.parameters(), strict=True))


class Staged(Method):
    """Trains, then freezes a copy and trains on against it: what is made between stages must survive a restart."""

    def __init__(self) -> None:
        super().__init__(network(), K)
        self.classifier = nn.Linear(4, K)
        self.copy = nn.Linear(4, K).requires_grad_(False)
        self.drop = nn.Dropout(0.5)

    def stages(self, data: Pair) -> Iterator[Stage]:
        yield Stage(self.first, share=0.4, name="first")
        self.copy.load_state_dict(self.classifier.state_dict())
        yield Stage(self.step, share=0.6, name="second")

    def first(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        yield Objective(classification=cross_entropy(self.predict(self.drop(s.x)), s.y))

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        f = self.net(self.drop(t.x))
        yield Objective(self.net, self.classifier, distance=mse_loss(self.classifier(f), self.copy(f) + 1))

    def predict(self, x: Tensor) -> Tensor:
        return self.classifier(self.net(x))


def staged(stop: int | None = None, path: Path | None = None, resume: Checkpoint | None = None) -> Staged:
    torch.manual_seed(1)
    method = Staged()
    for progress in train(method, pair(), Recipe(steps=10), resume):
        assert progress.stage == ("first" if progress.step <= 4 else "second")
        if progress.step == stop and path is not None:
            progress.checkpoint().save(path)
            break
    return method


@pytest.mark.parametrize("stop", [2, 4, 5, 9, 10])
def test_a_run_of_stages_resumes_bit_equal_from_any_step(stop: int, tmp_path: Path) -> None:
    unbroken = staged().state_dict()
    staged(stop, tmp_path / "c.safetensors")
    resumed = staged(resume=Checkpoint.load(tmp_path / "c.safetensors")).state_dict()
    assert all(torch.equal(unbroken[k], resumed[k]) for k in unbroken)


class Convolved(Method):
    """Convolutions whose weights are laid out with the channels last, which a checkpoint's file does not say."""

    def __init__(self) -> None:
        encoder = nn.Sequential(nn.Linear(D, 32), nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 4, 3))
        super().__init__(Network(encoder.to(memory_format=torch.channels_last), nn.Flatten(), 16, bottleneck=0), K)
        self.classifier = nn.Linear(16, K)

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        yield Objective(classification=cross_entropy(self.predict(s.x), s.y))

    def predict(self, x: Tensor) -> Tensor:
        return self.classifier(self.net(x))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_weights_in_another_layout_resume_bit_equal(optimizer: Literal["sgd", "adam"], tmp_path: Path) -> None:
    """The fused steps read weights and their momentum in one order, so that both must lie alike."""

    def run(stop: int, resume: Checkpoint | None = None) -> Convolved:
        torch.manual_seed(1)
        method = Convolved()
        for progress in train(method, pair(), Recipe(steps=6, optimizer=optimizer), resume):
            if progress.step == stop:
                progress.checkpoint().save(tmp_path / f"{stop}.safetensors")
                break
        return method

    unbroken = run(6).state_dict()
    run(3)
    resumed = run(6, Checkpoint.load(tmp_path / "3.safetensors")).state_dict()
    assert all(torch.equal(unbroken[k], resumed[k]) for k in unbroken)


def test_a_checkpoint_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    Checkpoint({"a": torch.ones(2)}, 0, 3).save(path)
    Checkpoint({"a": torch.zeros(2)}, 1, 4).save(path)
    loaded = Checkpoint.load(path)
    assert (loaded.stage, loaded.step) == (1, 4)
    assert torch.equal(loaded.tensors["a"], torch.zeros(2))
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"steps": 0}, "steps must be a whole number from 1 to 1,000,000,000, not 0"),
        ({"batch_size": 1}, "batch_size must be a whole number from 2 to 1,048,576, not 1"),
        ({"accumulate": 0}, "accumulate must be a whole number from 1 to 65,536"),
        ({"lr": -1.0}, "lr must be a number from 0 up, not -1.0"),
        ({"lr": float("nan")}, "lr must be a number from 0 up, not nan"),
        ({"momentum": 1.0}, "momentum must be a number from 0 to below 1"),
        ({"clip": 0.0}, "clip must be a number above 0, or none"),
        ({"schedule": "step"}, "schedule must be paper, tll or constant, not 'step'"),
    ],
)
def test_a_recipe_that_cannot_train_is_refused(wrong: dict, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        Recipe(**wrong)
