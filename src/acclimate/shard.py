"""Which part of a work one machine of several does: by number, or by what a scheduler says of the jobs of an array."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from acclimate.errors import OptionError

MOST_SHARDS = 2**20


class Shard(NamedTuple):
    """One of several parts of a work.

    Attributes:
        number: Which, from 0.
        of: How many there are.
    """

    number: int
    of: int

    def has(self, content: str) -> bool:
        """Whether something belongs to this part.

        It is assigned by what it is and not by its place among others, so that work that grows leaves everything with
        the part that has it already.

        Args:
            content: A hash of it, in hexadecimal.
        """
        return int(content, 16) % self.of == self.number

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def shard_of(text: str, environment: Mapping[str, str]) -> Shard:
    """The part that a user names.

    Args:
        text: `I/N`, from 0 to N - 1; the name of a scheduler, which says which part of how many this job is; or
            `SCHEDULER/N` where it does not say how many.
        environment: The environment's variables.

    Raises:
        OptionError: It is none of these, or the scheduler's variables are not set.
    """
    which, _, count = text.partition("/")
    if which in SCHEDULERS:
        index, of = SCHEDULERS[which](environment)
        if count:
            of = _number(count, text)
        elif of is None:
            raise OptionError(f"{which} does not say how many jobs its array has: write --shard {which}/N.")
        return _checked(index % max(of, 1), of, text)
    return _checked(_number(which, text), _number(count, text), text)


def _checked(index: int, of: int, text: str) -> Shard:
    if not 0 <= index < of <= MOST_SHARDS:
        raise OptionError(f"--shard counts from 0: of N parts the last is N-1/N, and {text} is none of them.")
    return Shard(index, of)


def _number(digits: str, text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", digits):
        raise OptionError(
            f"--shard takes I/N, such as 0/8, or a scheduler: {', '.join(SCHEDULERS)}, or SCHEDULER/N; not {text!r}."
        )
    return int(digits)


def _variable(environment: Mapping[str, str], scheduler: str, name: str) -> int:
    """A whole number that the scheduler sets for the jobs of an array."""
    value = environment.get(name, "")
    if not re.fullmatch("[0-9]{1,9}", value):
        raise OptionError(
            f"--shard {scheduler} reads {name}, which this job does not have: submit an array, or write --shard I/N."
        )
    return int(value)


def _slurm(environment: Mapping[str, str]) -> tuple[int, int | None]:
    index, least, of = (_variable(environment, "slurm", f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "MIN", "COUNT"))
    step = int(environment.get("SLURM_ARRAY_TASK_STEP") or 1)
    return (index - least) // max(step, 1), of


def _sge(environment: Mapping[str, str]) -> tuple[int, int | None]:
    index, first, last, step = (
        _variable(environment, "sge", name)
        for name in ("SGE_TASK_ID", "SGE_TASK_FIRST", "SGE_TASK_LAST", "SGE_TASK_STEPSIZE")
    )
    return (index - first) // max(step, 1), (last - first) // max(step, 1) + 1


def _lsf(environment: Mapping[str, str]) -> tuple[int, int | None]:
    index, last = (_variable(environment, "lsf", name) for name in ("LSB_JOBINDEX", "LSB_JOBINDEX_END"))
    return index - 1, last  # its arrays begin with 1


def _pbs(environment: Mapping[str, str]) -> tuple[int, int | None]:
    name = "PBS_ARRAYID" if "PBS_ARRAYID" in environment else "PBS_ARRAY_INDEX"  # Torque, and PBS Pro
    return _variable(environment, "pbs", name), None


def _k8s(environment: Mapping[str, str]) -> tuple[int, int | None]:
    return _variable(environment, "k8s", "JOB_COMPLETION_INDEX"), None


SCHEDULERS: dict[str, Callable[[Mapping[str, str]], tuple[int, int | None]]] = {
    "slurm": _slurm,
    "pbs": _pbs,
    "lsf": _lsf,
    "sge": _sge,
    "k8s": _k8s,
}
