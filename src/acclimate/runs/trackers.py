"""Training curves in the trackers that people use, fed by the stream that metrics.jsonl is written from."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from acclimate.choices import TrackerName
from acclimate.errors import OptionError

# The packages of each, and the folder of a run directory that it writes to.
_PACKAGES = {"tensorboard": ("torch.utils.tensorboard", "tensorboard"), "mlflow": ("mlflow",), "wandb": ("wandb",)}

FOLDERS = ("tensorboard", "wandb")


class Tracker(Protocol):
    """Takes the figures of a run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The values of a step."""
        ...


def check_tracker(name: TrackerName) -> None:
    """Refuse a tracker whose package is not installed, before anything is computed.

    Raises:
        OptionError: It is not installed.
    """
    for package in _PACKAGES.get(name, ()):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise OptionError(f"--tracker {name} needs a package: install it with `pip install {name}`.") from error


@contextmanager
def tracking(name: TrackerName, out: Path, identity: str, settings: Mapping[str, Any], start: int) -> Iterator[Tracker]:
    """A tracker for the time of a run.

    Args:
        name: Which.
        out: The run directory, whose name the tracker shows.
        identity: Of the run: one that goes on is the same run in MLflow and Weights & Biases too.
        settings: On one level; what the tracker shows as the run's parameters.
        start: The step that the run goes on from.
    """
    shown = {key: value if isinstance(value, int | float | str) else str(value) for key, value in settings.items()}
    match name:
        case "none":
            yield _Nothing()
        case "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            # What was logged behind the checkpoint is logged again.
            writer: Any = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)
            with writer:
                writer.add_text("settings", "".join(f"    {key}: {value}\n" for key, value in shown.items()))
                yield _TensorBoard(writer)
        case "mlflow":
            mlflow: Any = importlib.import_module("mlflow")
            with mlflow.start_run(run_id=_known_to(mlflow, identity), run_name=out.name, tags={_TAG: identity}):
                mlflow.log_params(shown)
                yield _MLflow(mlflow)
        case "wandb":
            wandb: Any = importlib.import_module("wandb")
            with wandb.init(
                project="acclimate", name=out.name, id=identity[:32], resume="allow", dir=str(out), config=shown
            ) as run:
                yield _WandB(run)


_TAG = "acclimate.identity"


def _known_to(mlflow: Any, identity: str) -> str | None:
    """MLflow's name for a run that it has seen before."""
    found = mlflow.search_runs(filter_string=f"tags.`{_TAG}` = '{identity}'", output_format="list")
    return found[0].info.run_id if found else None


class _Nothing:
    def log(self, step: int, values: Mapping[str, float]) -> None:
        pass


class _TensorBoard:
    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)


class _MLflow:
    def __init__(self, mlflow: Any) -> None:
        self.mlflow = mlflow

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.mlflow.log_metrics(dict(values), step=step)


class _WandB:
    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)
