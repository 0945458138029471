"""The checks for those who write a method: each finds its mistake, and says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from acclimate import testing
from acclimate.methods import registry
from acclimate.testing import check_method

SOUND = """
from itertools import count

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from acclimate.methods.base import Method, Objective, Stage
from acclimate.methods.parts.layers import Discriminator, reverse
from acclimate.methods.parts.losses import domain_loss

MADE = count()


class Mine(Method):
    needs = "vector"

    def __init__(self, net, num_classes, *, weight: float = 0.5, hidden: int = 16):
        super().__init__(net, num_classes)
        self.weight = weight
        self.classifier = nn.Linear(net.dim, num_classes)
        self.critic = Discriminator(net.dim, hidden=hidden)

    def step(self, s, t):
        f_s, f_t = self.net.pair(s.x, t.x)
        yield Objective(
            fit=cross_entropy(self.classifier(f_s), s.y),
            adversarial=self.weight * domain_loss(self.critic, reverse(f_s, self.ramp), reverse(f_t, self.ramp)),
        )

    def predict(self, x):
        return self.classifier(self.net(x))

    def domain_logits(self, x):
        return {"f": self.critic(self.net(x))}
"""


def written(folder: Path, *changes: tuple[str, str]) -> str:
    """The name of the sound method, with these texts replaced."""
    text = SOUND
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "my.py").write_text(text)
    return f"{folder / 'my.py'}:Mine"


@pytest.mark.parametrize("needs", ["vector", "map", "image"])
def test_a_sound_method_passes(needs: str, tmp_path: Path) -> None:
    name = written(tmp_path, ('needs = "vector"', f'needs = "{needs}"'))
    check_method(name, hidden=8)
    check_method(registry.load(name), hidden=8)


def test_the_method_of_the_documentation_passes(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "own.md").read_text(encoding="utf-8")
    (tmp_path / "my.py").write_text(page.split("```python\n")[1].split("```")[0])
    check_method(str(tmp_path / "my.py"))


INIT = "        self.weight = weight\n"
STEP = "        f_s, f_t = self.net.pair(s.x, t.x)\n"
PREDICT = "        return self.classifier(self.net(x))"


@pytest.mark.parametrize(
    "mistake",
    [
        (("hidden: int", "hidden"), "The option hidden of Mine has no type that text can be read as"),
        (
            ("    needs", "    rows = {'Row': {'weigth': 1}}\n    needs"),
            "Mine has no option 'weigth'; did you mean weight?",
        ),
        (("    needs", "    recipe = {'speed': 1}\n    needs"), "The recipe of Mine has an entry 'speed'"),
        (
            ("(net, num_classes)\n", "(net, 2)\n"),
            "Mine has not passed num_classes to super().__init__(net, num_classes).",
        ),
        (
            (INIT, f"{INIT}        net.encoder.weight.data.zero_()\n"),
            "Mine changes the network that it is given: let it work on a copy.",
        ),
        (
            ("    def step", "    def stages(self, data):\n        yield Stage(self.step, 0.5)\n\n    def step"),
            "Mine took 4 of 8 steps: let the shares of its stages add up to 1.",
        ),
        (
            (INIT, f"{INIT}        self.spare = nn.Linear(2, 3)\n"),
            "never moved spare.weight, spare.bias: put them into an",
        ),
        (
            ("fit=cross", "fit=torch.inf * cross"),
            "Mine cannot be trained on easy data: Training diverged at step 1: fit",
        ),
        ((PREDICT, f"{PREDICT}[:, 1:]"), "Mine.predict makes (7, 2) of 7 samples: return logits (7, 3)."),
        ((PREDICT, f"{PREDICT} - x.mean()"), "Mine.predict makes something else of a sample alone than among others"),
        (("return {", "return {'g': x[:, :2], "), "Mine.domain_logits has (7, 2) for 'g': return (7,)."),
        (
            (
                STEP,
                f"{STEP}        self.register_buffer('late', f_s.detach(), persistent=True)\n",
            ),
            "Mine cannot load what it saved: make all parameters and buffers in __init__.",
        ),
        (
            (INIT, f"{INIT}        self.scale = 0\n"),
            (STEP, f"{STEP}        self.scale = 1\n"),
            (PREDICT, f"{PREDICT} * self.scale"),
            "Mine predicts otherwise when it was saved and loaded: let all that predict needs be parameters or",
        ),
        (("fit=cross", "fit=(1 + 0.01 * next(MADE)) * cross"), "Two trainings of Mine differ in classifier.bias, "),
        (
            (STEP, f"{STEP}        self.n = getattr(self, 'n', 0) + 1\n        f_s = f_s * self.n\n"),
            "when it was interrupted after step 1: let all that a later step needs be parameters or buffers.",
        ),
        ((STEP, f"{STEP}        f_s, f_t = f_s.detach(), f_t.detach()\n"), "never moved net.encoder.weight"),
        (
            ("adversarial=", "play="),
            "reverses a gradient, and none of its terms (fit, play) has a name that begins with",
        ),
        (
            ("reverse(f_t, self.ramp)", "f_t"),
            "reaches the network's encoder on a way around the reversal too: detach it",
        ),
        (
            (
                "domain_loss(self.critic, reverse(f_s, self.ramp), reverse(f_t, self.ramp))",
                "reverse(domain_loss(self.critic, f_s, f_t), self.ramp)",
            ),
            "The term adversarial of Mine trains no discriminator: see that what it makes is not constant, and that",
        ),
        (
            ("reverse(f_s, self.ramp), reverse(f_t, self.ramp)", "reverse(f_s, 0.0), reverse(f_t, 0.0)"),
            "The term adversarial of Mine gives the network's encoder no gradient",
        ),
        (
            ("reverse(f_s, self.ramp), reverse(f_t, self.ramp)", "reverse(f_s, -1.0), reverse(f_t, -1.0)"),
            "moves the network's encoder the discriminator's way: reverse the features that go into the discriminator",
        ),
        (("s.y)", "(s.y + 1) % 3)"), "of an easy target right after 100 steps: see that the source's labels"),
    ],
)
def test_a_mistake_is_told(mistake: tuple[Any, ...], tmp_path: Path) -> None:
    *changes, sentence = mistake
    name = written(tmp_path, *changes)
    with pytest.raises(AssertionError) as raised:
        check_method(name, hidden=8)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_class_that_is_no_method() -> None:
    with pytest.raises(AssertionError, match="int is no method: derive it from"):
        check_method(int)  # type: ignore[arg-type]


def test_every_check_is_described() -> None:
    assert all(check.__doc__ for check in testing.CHECKS)
