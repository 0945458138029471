"""A consensus as a run: its members are runs of their own below its folder, made in turn or side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from acclimate.errors import DataError, DivergedError
from acclimate.evaluation.scores import Probabilities
from acclimate.locks import alone
from acclimate.machine import begin_computing, torch_threads
from acclimate.methods.options import describe
from acclimate.methods.registry import BASELINE
from acclimate.model import Model
from acclimate.processes import become_worker, signals_held
from acclimate.progress import NOBODY, Listener, WarningsOnly
from acclimate.runs.directory import discard_damaged
from acclimate.runs.judge import findings_of, verdict
from acclimate.runs.members import FEWEST, Member, looks, members_of, most_agreeing, teach
from acclimate.runs.prepare import Prepared
from acclimate.runs.record import (
    AccuracyEstimate,
    ClassShare,
    MemberRecord,
    Trust,
    predictions_of,
    read_record,
    source_predictions_of,
)
from acclimate.runs.run import Judgement, run
from acclimate.runs.task import Task, Tasks, identity
from acclimate.settings import Settings
from acclimate.trust import shares
from acclimate.trust.consensus import Classes, agreements
from acclimate.trust.estimate import reliability

if TYPE_CHECKING:
    from torch import Tensor


class Council:
    """The members of a consensus as runs below its folder: they teach it, and tell how far to trust it.

    Args:
        settings: Of the consensus.
        task: The data.
        out: The run directory of the consensus.
        screen: Who is told how it comes along.
        command: The arguments of the command line that asks for it, for the records.
        jobs: Members that are trained at a time.
    """

    def __init__(
        self, settings: Settings, task: Task, out: Path, screen: Listener, command: Sequence[str], jobs: int
    ) -> None:
        self.members = members_of(settings)
        self.settings, self.task, self.out = settings, task, out
        self.screen, self.command, self.jobs = screen, command, jobs
        self.failed: dict[str, str] = {}

    def teach(self, ready: Prepared) -> None:
        """Make the members, let them vote, and give the method their lesson.

        Raises:
            DivergedError: So many members diverged that too few are left.
        """
        self.members = members_of(self.settings, ready.model.spec.tune)
        self._make()
        present = self.present
        if len(present) < FEWEST:
            reasons = "; ".join(f"{name}: {sentence}" for name, sentence in self.failed.items())
            raise DivergedError(f"Fewer than {FEWEST} members are left. {reasons}")
        votes = np.stack([self._votes(member, ready) for member in present])
        self.lesson = teach(ready, votes, self._network(ready, votes), self.settings.seed)

    @property
    def present(self) -> list[Member]:
        """The members that did not diverge."""
        return [member for member in self.members if member.name not in self.failed]

    def judge(self, ready: Prepared, probabilities: Probabilities) -> Judgement:
        """What to make of the result, of which these are the probabilities (N, K) of the target."""
        agree = reliability(self.lesson.members, probabilities.argmax(1))
        return Judgement(agree, self._trust(ready, probabilities))

    def _make(self) -> None:
        """Make the runs of the members that are not made yet."""
        made = _side_by_side if self.jobs > 1 else _in_turn
        shown = self.screen if self.screen.interactive else WarningsOnly(self.screen)
        with self.screen.progress("Members", len(self.members), 0) as meter:
            for number, (member, sentence) in enumerate(made(self, shown), 1):
                meter.update(number)
                if sentence is None:
                    self.screen.say(f"{member.name} is trained.")
                    continue
                self.failed[member.name] = sentence
                self.screen.warn(f"The member {member.name} is left out: {sentence}")

    def _votes(self, member: Member, ready: Prepared) -> Classes:
        """The classes (N,) that a member predicts."""
        classes, folder = ready.task.source.classes, self.out / member.folder
        predictions = predictions_of(folder)
        if predictions.names != ready.task.target.names:
            raise DataError(f"The member in {folder} could read other images: use --overwrite to begin anew.")
        return np.array([classes.index(name) for name in predictions.predicted], dtype=np.int64)

    def _network(self, ready: Prepared, votes: Classes) -> Callable[[Tensor], Tensor] | None:
        """The trained network of a member, where the consensus's own has no pretrained weights to look with."""
        if ready.model.method.net.pretrained or ready.model.method.net.level == "vector":
            return None
        member = self.present[most_agreeing(votes)]
        of = member.settings
        model = Model.load(self.out / member.folder, ready.model.device, method=of.method, backbone=of.backbone)
        return looks(model.method)

    @property
    def _source_only(self) -> Member | None:
        return next((member for member in self.present if member.settings.method == BASELINE), None)

    def _trust(self, ready: Prepared, p: Probabilities) -> Trust:
        source_only, classes = self._source_only, ready.task.source.classes
        p_before = predictions_of(self.out / source_only.folder).probabilities if source_only is not None else None
        findings = self.lesson.findings(p, p_before, classes, self.settings.seed)
        estimated, rough = self._shares(ready, p_before, p.argmax(1))
        estimate = self.lesson.estimate
        return Trust(
            verdict=verdict(findings),
            level=findings.level,
            findings=findings_of(findings),
            estimate=AccuracyEstimate(
                value=estimate.value, low=estimate.low, high=estimate.high, agreement=estimate.agreement
            ),
            members=tuple(self._records(p.argmax(1))),
            shares=estimated,
            rough=rough,
            unfamiliar=float(self.lesson.unfamiliar.mean()) if self.lesson.unfamiliar is not None else None,
        )

    def _records(self, decided: Classes) -> Iterator[MemberRecord]:
        """The members as the record holds them, those that diverged at the end."""
        votes, present = self.lesson.members, self.present
        agree = agreements(votes)
        for m, member in enumerate(present):
            record = read_record(self.out / member.folder / "record.json")
            yield MemberRecord(
                name=member.name,
                folder=member.folder,
                agreement=float(agree[m]),
                with_result=float((votes[m] == decided).mean()),
                accuracy=record.scores.accuracy if record.scores is not None else None,
                seconds=record.seconds.training,
                failed=None,
            )
        for member in self.members:
            if member.name in self.failed:
                yield MemberRecord(
                    name=member.name,
                    folder=member.folder,
                    agreement=None,
                    with_result=None,
                    accuracy=None,
                    seconds=None,
                    failed=self.failed[member.name],
                )

    def _shares(
        self, ready: Prepared, p_before: Probabilities | None, decided: Classes
    ) -> tuple[tuple[ClassShare, ...], str | None]:
        """The shares of the classes, and why the estimated ones are a rough guide, or why there are none."""
        classes = ready.task.source.classes
        counted = np.bincount(decided, minlength=len(classes)) / len(decided)
        estimates, rough = self._estimates(ready, p_before)
        ends = {
            name: [(float(s.shares[k]), float(s.low[k]), float(s.high[k])) for k in range(len(classes))]
            for name, s in estimates.items()
        }
        of_classes = tuple(
            ClassShare(
                name=name,
                predicted=float(counted[k]),
                bbse=ends["bbse"][k] if "bbse" in ends else None,
                mlls=ends["mlls"][k] if "mlls" in ends else None,
            )
            for k, name in enumerate(classes)
        )
        return of_classes, rough

    def _estimates(
        self, ready: Prepared, p_before: Probabilities | None
    ) -> tuple[dict[str, shares.Shares], str | None]:
        """What source-only's predictions tell of the shares, by the estimate's name, and what speaks against it."""
        source_only = self._source_only
        if ready.held is None or source_only is None or p_before is None:
            return {}, (
                "The class shares are not estimated: that takes source-only as a member and a held-out part of the "
                "source."
            )
        folder = self.out / source_only.folder
        held = source_predictions_of(folder, read_record(folder / "record.json"))
        given = (held.probabilities, held.labels, p_before[self.lesson.view.chosen], self.settings.seed)
        try:
            estimates = {"bbse": shares.bbse(*given), "mlls": shares.mlls(*given)}
        except DataError as error:
            return {}, str(error)
        if not any(estimate.rough for estimate in estimates.values()):
            return estimates, None
        return estimates, (
            "The estimated class shares are a rough guide: the classes look different in the target, and the estimates "
            "assume that they do not."
        )


# --- making the members ---------------------------------------------------------------------------------------------

# Each is made by one thread, so that it has the same bits in this process and in another beside others.


def _in_turn(council: Council, screen: Listener) -> Iterator[tuple[Member, str | None]]:
    """Make the members in this process; each with the sentence of its divergence, or None."""
    for member in council.members:
        yield member, _made(member, council.task, council.out, screen, council.command)


def _side_by_side(council: Council, screen: Listener) -> Iterator[tuple[Member, str | None]]:
    """Make the members in several processes, those that take longest first, so that none is waited for alone."""
    members = sorted(council.members, key=_cost, reverse=True)
    expected = {member.name: identity(member.settings, council.task) for member in members}
    jobs = min(council.jobs, len(members))
    try:
        with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=become_worker) as pool:
            try:
                with signals_held():  # the first of them starts the processes
                    futures = [
                        pool.submit(_made_elsewhere, member, expected[member.name], council.out, council.command)
                        for member in members
                    ]
                for member, future in zip(members, futures, strict=True):
                    yield member, future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list((pool._processes or {}).values()):
                    process.terminate()
                raise
    except BrokenProcessPool as error:
        raise DataError(
            "A member's process died, perhaps for lack of memory: the same command goes on from there, and fewer "
            "--jobs need less memory."
        ) from error


def _cost(member: Member) -> float:
    """What a member's training is known to take, relative to source-only; infinite where nobody knows."""
    measured = describe(member.settings.method)["measured"] or {}
    return float(measured.get("cost", math.inf))


def _made(member: Member, task: Task, out: Path, screen: Listener, command: Sequence[str]) -> str | None:
    """Make a member's run; the sentence with which it diverged, or None."""
    try:
        with torch_threads(1), alone(out / member.folder):
            discard_damaged(out / member.folder)
            run(member.settings, task, out / member.folder, screen, command=command)
    except DivergedError as error:
        return str(error)
    return None


def _made_elsewhere(member: Member, expected: str, out: Path, command: Sequence[str]) -> str | None:
    """`_made` in a process of its own, which reads the data itself.

    Raises:
        DataError: The data have changed meanwhile.
    """
    begin_computing()
    task = _tasks.of(member.settings)
    if identity(member.settings, task) != expected:
        raise DataError("The data have changed since the run began: begin it again.")
    return _made(member, task, out, NOBODY, command)


_tasks = Tasks(NOBODY)  # of a process that makes members
