"""What makes the runs of a bench on other machines: Slurm by submitit, Dask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from acclimate.bench.workers import Executor
from acclimate.errors import OptionError

SLURM_OPTIONS = {
    "partition": "slurm_partition",
    "account": "slurm_account",
    "qos": "slurm_qos",
    "time": "timeout_min",
    "memory": "mem_gb",
    "gpus": "gpus_per_node",
    "at_once": "slurm_array_parallelism",
}
NUMBERS = ("time", "memory", "gpus", "at_once")


class Slurm:
    """Gives runs to Slurm as one array of jobs. A job that Slurm preempts or that runs out of time is queued again."""

    def __init__(self, executor: Any, requeued: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self.executor = executor
        self.requeued = requeued

    def batch(self) -> Any:
        """The context in which what is submitted becomes one array."""
        return self.executor.batch()

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Any:
        """Submit a call."""
        return self.executor.submit(self.requeued(function), *args)


def slurm(out: Path, threads: int, options: str) -> Slurm:
    """An executor of Slurm jobs.

    Args:
        out: The bench's folder, which the jobs' machines share; their logs lie below it.
        threads: Processor cores of a job.
        options: What a job asks for, as `partition=gpu,time=60,gpus=1`; for the names see `SLURM_OPTIONS`. Times are
            in minutes, memory in GB. `cluster=local` runs the jobs on this machine, to try it.

    Raises:
        OptionError: submitit is not installed, Slurm is not there, or an option is unknown.
    """
    try:
        import submitit
        from submitit.helpers import Checkpointable
    except ImportError as error:
        raise OptionError('--engine slurm needs submitit: pip install "acclimate[slurm]".') from error
    asked = _options(options)
    cluster = asked.pop("cluster", "slurm")
    parameters = {"name": "acclimate", "cpus_per_task": threads, "timeout_min": 60, **_named(asked)}
    try:
        executor = submitit.AutoExecutor(folder=out / "slurm" / "%j", cluster=cluster)
        executor.update_parameters(**parameters)
    except Exception as error:  # submitit asks Slurm whether it is there
        raise OptionError(f"submitit cannot use the cluster {cluster!r} ({error}).") from error

    class Requeued(Checkpointable):
        """A call that is made anew after a preemption; the run's own checkpoint lets it go on."""

        def __init__(self, function: Callable[..., Any]) -> None:
            self.function = function

        def __call__(self, *args: Any) -> Any:
            """Make the run."""
            return self.function(*args)

    return Slurm(executor, Requeued)


def _options(text: str) -> dict[str, str]:
    pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    for name, equals, value in pairs:
        if not equals or not value or name not in (*SLURM_OPTIONS, "cluster"):
            raise OptionError(
                f"--slurm takes {', '.join(f'{known}=...' for known in SLURM_OPTIONS)} with commas between, "
                f"not {name}{equals}{value}."
            )
    return {name: value for name, _, value in pairs}


def _named(asked: Mapping[str, str]) -> dict[str, Any]:
    """The options as submitit calls them."""
    for name in NUMBERS:
        if name in asked and not asked[name].isdecimal():
            raise OptionError(f"{name} in --slurm must be a whole number, not {asked[name]}.")
    return {SLURM_OPTIONS[name]: int(value) if name in NUMBERS else value for name, value in asked.items()}


@contextmanager
def dask(address: str | None, jobs: int, threads: int) -> Iterator[Executor]:
    """An executor of a Dask cluster.

    Args:
        address: Of its scheduler; None begins a cluster on this machine.
        jobs: Workers of a cluster on this machine.
        threads: Threads of a run there.

    Raises:
        OptionError: Dask is not installed, or the scheduler does not answer.
    """
    try:
        import distributed
    except ImportError as error:
        raise OptionError("--engine dask needs Dask: pip install distributed.") from error
    library: Any = distributed  # which has no types
    if address is not None:
        try:
            client = library.Client(address, timeout=10)
        except OSError as error:
            raise OptionError(f"No Dask scheduler answers at {address}: start one with `dask scheduler`.") from error
        with client:
            yield client.get_executor(pure=False)
        return
    # A worker makes one run at a time, and is not ended for its memory: the runs of a bench are alike.
    own = {"n_workers": jobs, "threads_per_worker": 1, "memory_limit": 0, "dashboard_address": None}
    with library.LocalCluster(**own, host="127.0.0.1") as cluster, library.Client(cluster) as client:
        yield client.get_executor(pure=False)  # Dask takes a call with equal arguments for made otherwise
