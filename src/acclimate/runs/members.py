"""The members of a consensus: which they are, and what they teach together; in memory, whoever trained them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from acclimate.choices import Tune
from acclimate.data.inputs import Inputs, SelectedInputs
from acclimate.errors import OptionError
from acclimate.evaluation.scores import Probabilities
from acclimate.methods import registry
from acclimate.methods.base import Method, over_all
from acclimate.methods.consensus import Consensus
from acclimate.methods.options import options
from acclimate.methods.registry import CONSENSUS
from acclimate.model import Model
from acclimate.runs.directory import MEMBERS
from acclimate.runs.prepare import Prepared
from acclimate.settings import RECIPE, Recipe, Settings
from acclimate.trust.consensus import (
    MOST,
    Classes,
    Features,
    agreement,
    agreements,
    ballots,
    class_means,
    confidence_ranks,
    consensus,
    familiarity,
    neighbours,
    of_each_class,
    sample,
)
from acclimate.trust.estimate import Accuracy, estimate_accuracy, estimate_gain
from acclimate.trust.validators import Evidence
from acclimate.trust.warnings import Findings, Outcome, examine

if TYPE_CHECKING:
    from torch import Tensor

FEWEST = 2
# What members were measured with where a method's own default is another; what a row's name says stands above it.
AS_MEASURED: Mapping[str, Mapping[str, Any]] = {"cdan": {"random": "auto"}, "wemnet": {"w_d": "linear"}}
UNFAMILIAR = 0.6  # of the voters, on average around an image: below it they are at odds about all images like it
TELLING = 0.55  # agreement of two voters, below which they are at odds about images of known classes as well


class Member(NamedTuple):
    """A member of a consensus: its name, its folder below that of the consensus, and its settings."""

    name: str
    folder: str
    settings: Settings


def members_of(settings: Settings, tune: Tune | None = None) -> tuple[Member, ...]:
    """The members of a consensus, each trained by its own recipe, with the options that they were measured with.

    An entry of the recipe that is not a method's own (steps, batch_size, ...) is that of the consensus, and so is one
    that was changed for it.

    Args:
        settings: Of the consensus.
        tune: What the consensus trains, once that is decided; the members train the same.

    Raises:
        OptionError: There are fewer than two, one is named twice, is none, or is a consensus.
    """
    listed = settings.options.get("members", options(CONSENSUS)["members"].default)
    names = [name.strip() for name in listed.split(",") if name.strip()]
    usual = Recipe.of(Consensus)
    given = {
        name: getattr(settings.recipe, name)
        for name, one in RECIPE.items()
        if not one.setting.of_method or name == "hold_out" or getattr(settings.recipe, name) != getattr(usual, name)
    }
    members: list[Member] = []
    for name in names:
        method, named = registry.row(name)
        if method == CONSENSUS:
            raise OptionError("A consensus cannot be a member of a consensus: name single methods.")
        recipe = Recipe.of(registry.load(method), **given)
        chosen = {**AS_MEASURED.get(method, {}), **named}
        one = replace(settings, method=method, options=chosen, recipe=recipe, tune=tune or settings.tune)
        if any((one.method, one.options) == (other.settings.method, other.settings.options) for other in members):
            raise OptionError(f"{name} is named twice among the members: name each method once.")
        folder = re.sub(r"[^\w+.-]+", "_", registry.shown(method) if not named else name)
        members.append(Member(name, f"{MEMBERS}/{folder}", one))
    if len(members) < FEWEST:
        raise OptionError(f"A consensus needs at least {FEWEST} members, not {len(members)}: name more with --members.")
    return tuple(members)


class View(NamedTuple):
    """The features in which the graph is built.

    Attributes:
        chosen: (n,) positions of the target's images that are in it: all, or a sample of a large target.
        target: (n, D) their features.
        source: (m, D) features of the source's images, or of as many of each class of a large one.
        labels: (m,) their classes.
    """

    chosen: Classes
    target: Features
    source: Features
    labels: Classes

    @classmethod
    def of(
        cls,
        model: Model,
        network: Callable[[Tensor], Tensor],
        source: Inputs,
        labels: Classes,
        target: Inputs,
        seed: int,
        most: int = MOST,
    ) -> View:
        """The features of both domains.

        Args:
            model: Its method is put in evaluation mode, and its device computes.
            network: From a batch (B, ...) to features (B, D).
            source: The labelled images.
            labels: (N_s,) their classes.
            target: The others.
            seed: Of the samples of large domains.
            most: Images of the target from which on they are sampled.
        """

        def features(inputs: Inputs, positions: Classes) -> Features:
            return over_all(model.method, network, SelectedInputs(inputs, positions), device=model.device).cpu().numpy()

        chosen, kept = sample(len(target), seed, most), of_each_class(labels, seed)
        return cls(chosen, features(target, chosen), features(source, kept), labels[kept])

    def evidence(self, p: Probabilities, seed: int) -> Evidence:
        """What is known of a run that says p (N, K) of the target."""
        return Evidence(
            p_target=p[self.chosen],
            frozen_target=self.target,
            frozen_source=self.source,
            y_source=self.labels,
            seed=seed,
        )


@dataclass(frozen=True, eq=False)
class Lesson:
    """What M members say together of N images of the target, n of which are in the graph.

    Attributes:
        members: (M, N) the classes that each predicts.
        view: The features of the graph.
        voters: (M + 1, n) the votes of the members and of the class means, which come last.
        pretrained: Whether the graph is of features that were there before the training, or of the data themselves.
        graph: (n, n) what the votes spread over.
        classes: (n,) the consensus.
        weights: (n,) how much each image counts in teaching.
        unfamiliar: (n,) bool, the images that look like no class of the source; None where that cannot be told.
    """

    members: Classes
    view: View
    voters: Classes
    pretrained: bool
    graph: csr_array
    classes: Classes
    weights: npt.NDArray[np.float64]
    unfamiliar: npt.NDArray[np.bool_] | None

    @classmethod
    def of(cls, members: Classes, view: View, K: int, *, pretrained: bool) -> Lesson:
        """Form the consensus of members (M, N) on K classes."""
        means = class_means(view.source, view.labels, view.target, K)
        voters = np.vstack([members[:, view.chosen], means])
        S = neighbours(view.target)
        Z = consensus(voters, S, K)
        told = agreement(voters) >= TELLING
        unfamiliar = familiarity(ballots(voters, K), S) < UNFAMILIAR if told else None
        return cls(members, view, voters, pretrained, S, Z.argmax(1), confidence_ranks(Z), unfamiliar)

    @property
    def estimate(self) -> Accuracy:
        """An estimate of the accuracy of the consensus."""
        return estimate_accuracy(self.voters, alike=not self.pretrained)

    def findings(
        self, p: Probabilities, p_before: Probabilities | None, classes: tuple[str, ...], seed: int
    ) -> Findings:
        """What the checks have to say of the student.

        Args:
            p: (N, K) its probabilities for the target.
            p_before: (N, K) those of source-only, where it is a member.
            classes: K names.
            seed: Of what is random in the checks.
        """
        i, after = self.view.chosen, self.view.evidence(p, seed)
        before, everywhere, gain = None, None, None
        if p_before is not None:
            before, everywhere = Evidence(p_target=p_before[i]), (p_before.argmax(1), p.argmax(1))
            was, now = (said[i] for said in everywhere)
            gain = estimate_gain(was, now, self.voters[-1], self.graph, len(classes))
        return examine(
            Outcome(
                classes,
                after,
                before,
                everywhere=everywhere,
                gain=gain,
                members=self.members[:, i],
                unknown=self.unfamiliar,
            )
        )


def most_agreeing(members: Classes) -> int:
    """The member in whose features a graph is built where none are pretrained: the one that agrees most with others.

    An adapted network brings images of a class together across the domains, which source-only's does not; the members
    that are right agree with each other.

    Args:
        members: (M, N) the classes that each member predicts.
    """
    return int(agreements(members).argmax())


def looks(method: Method) -> Callable[[Tensor], Tensor]:
    """The feature of a trained member, in evaluation mode, as the network that a graph is built with."""
    method.eval()
    return lambda x: method.feature(x, "target")


def teach(ready: Prepared, members: Classes, network: Callable[[Tensor], Tensor] | None, seed: int) -> Lesson:
    """Form the consensus, and give it to the method that is to learn it.

    Args:
        ready: The run that is about to train.
        members: (M, N) the classes that each member predicts of the target.
        network: Makes the features of the graph where the run's own network has no pretrained weights; otherwise these
            are the features of the untouched backbone, or the vectors themselves.
        seed: Of the samples of large domains.
    """
    method = ready.model.method
    assert isinstance(method, Consensus)
    net = method.net
    untouched = net.pretrained or net.level == "vector"
    assert untouched or network is not None
    look = (lambda x: net.pool(net.map(x))) if untouched or network is None else network
    pair = ready.pair
    view = View.of(ready.model, look, pair.source, pair.labels.numpy(), pair.target, seed)
    lesson = Lesson.of(members, view, len(ready.task.source.classes), pretrained=untouched)
    N = len(ready.target)
    y, w = np.zeros(N, dtype=np.int64), np.zeros(N)
    y[view.chosen], w[view.chosen] = lesson.classes, lesson.weights
    method.learn(y, w)
    return lesson
