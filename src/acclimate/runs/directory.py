"""The folder of a run: whose it is, where it goes on, and what is left of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from acclimate import schema
from acclimate.errors import DataError
from acclimate.files import leftovers, replacing, write_json
from acclimate.methods.registry import BASELINE
from acclimate.runs.files import MAKE_AGAIN, RUN_FILES
from acclimate.runs.record import RunRecord, read_record
from acclimate.runs.trackers import FOLDERS
from acclimate.schema import Entry
from acclimate.settings import check_recorded, comparable
from acclimate.training import Checkpoint

MEMBERS = "members"  # the folder, below that of a consensus, of its members' runs


class Begun(Entry, frozen=True, kw_only=True):
    """The content of checkpoint/run.json, by which an unfinished run is known: as in `RunRecord`."""

    identity: str
    settings: dict[str, Any]


class RunDirectory:
    """The folder of one run.

    Args:
        path: The folder; it need not exist.
        identity: What makes the run the same run.
        settings: As in record.json.
    """

    def __init__(self, path: Path, identity: str, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.identity = identity
        self.settings = settings

    @property
    def checkpoint_file(self) -> Path:
        """Where training saves its state."""
        return self.path / "checkpoint" / "last.safetensors"

    def finished(self) -> RunRecord | None:
        """The record, if the run is finished.

        Raises:
            DataError: The folder holds another run, or the record is damaged.
        """
        path = self.path / "record.json"
        if not path.exists():
            return None
        record = read_record(path)
        self._check_same(record)
        return record

    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint to go on from, if there is one.

        Raises:
            DataError: The folder holds another run, or the checkpoint is damaged.
        """
        path = self.path / "checkpoint" / "run.json"
        if not path.exists():
            return None
        with schema.told(path, MAKE_AGAIN):
            begun = schema.decode(path.read_bytes(), Begun)
            check_recorded(begun.settings, needed=())
        self._check_same(begun)
        if not self.checkpoint_file.exists():
            return None
        try:
            return Checkpoint.load(self.checkpoint_file)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"The checkpoint in {self.path} is damaged: use --overwrite to begin anew.") from error

    def note_classes(self, classes: npt.NDArray[np.int64]) -> None:
        """Note the classes that are predicted at some point of training, for `noted_classes`."""
        with replacing(self._noted) as temporary:
            save_file({"classes": classes}, temporary)

    def noted_classes(self) -> npt.NDArray[np.int64] | None:
        """What `note_classes` noted; None where that is not to be had."""
        try:
            return load_file(self._noted)["classes"]
        except (SafetensorError, OSError, KeyError):
            return None

    @property
    def _noted(self) -> Path:
        return self.path / "checkpoint" / "classes.safetensors"

    def begin(self) -> None:
        """Make the folder, which from now on is known by the run's identity.

        Raises:
            DataError: It cannot be written to.
        """
        begun = Begun(identity=self.identity, settings=dict(self.settings))
        try:
            (self.path / "checkpoint").mkdir(parents=True, exist_ok=True)
            write_json(self.path / "checkpoint" / "run.json", schema.as_json(begun))
        except OSError as error:
            raise DataError(
                f"The folder {self.path} cannot be written to ({error.strerror}): name another with --out."
            ) from error

    def tidy(self) -> None:
        """Delete what only an unfinished run needs, and the files that a kill left half written."""
        shutil.rmtree(self.path / "checkpoint", ignore_errors=True)
        half_written = [half for name in RUN_FILES for half in leftovers(self.path / name)]
        half_written += self.path.glob(".tmp??????")  # by safetensors, which first writes to a name of its own
        for half in half_written:
            half.unlink(missing_ok=True)

    def _check_same(self, found: RunRecord | Begun) -> None:
        """Refuse to go on with what another run noted of itself."""
        if found.identity == self.identity:
            return
        before, now = comparable(found.settings), comparable(self.settings)
        changed = [name for name in now if before.get(name) != now[name]]
        other = f"other settings ({', '.join(changed)})" if changed else "other data, other code or of another version"
        raise DataError(f"{self.path} holds a run with {other}: name another --out, or use --overwrite to delete it.")


def check_folder(out: Path, source: str) -> None:
    """Refuse a folder that is something else than a run directory, so that nothing of the user's is mixed up.

    Raises:
        DataError: It is.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file: name a folder with --out.")
    if out.is_dir() and not _untouched(out) and not _is_run(out) and not _is_run(out / BASELINE):
        raise DataError(f"{out} is not empty and holds no run: name a new folder with --out.")
    if Path(source).is_dir() and out.resolve().is_relative_to(Path(source).resolve()):
        raise DataError(f"{out} lies in the source, where it would be taken for a class: name another --out.")
    above = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise DataError(f"The folder {out} cannot be made or written to in {above}: name another with --out.")


def baseline(out: Path) -> Path | None:
    """The run of source-only beside a run, or among its members, on the same data; None where there is none."""
    folders = (out / MEMBERS / BASELINE, out / BASELINE)
    return next((folder for folder in folders if (folder / "record.json").exists()), None)


def delete_run(out: Path) -> None:
    """Delete the files of a run and of its members, and nothing else that may lie in its folder."""
    if _is_run(out):
        for member in sorted((out / MEMBERS).glob("*")):
            delete_run(member)
        for name in RUN_FILES:
            (out / name).unlink(missing_ok=True)
        for name in ("checkpoint", *FOLDERS):
            shutil.rmtree(out / name, ignore_errors=True)


def _is_run(out: Path) -> bool:
    """Whether a run noted itself in a folder; a note that is damaged or of another version counts, to be deleted."""
    for name in ("record.json", "checkpoint/run.json"):
        try:
            content = (out / name).read_bytes()
        except OSError:
            continue
        if b'"identity"' in content and b'"settings"' in content:
            return True
    return False


def _untouched(folder: Path) -> bool:
    """Whether a folder is empty, but for what a run leaves that is killed the moment it begins."""
    return all(
        entry.name.startswith(".run.json.")
        or (entry.name in ("checkpoint", BASELINE) and entry.is_dir() and _untouched(entry))
        for entry in folder.iterdir()
    )
