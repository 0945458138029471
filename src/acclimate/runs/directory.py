"""The folder of a run: whose it is, where it goes on, and what is left of it."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from acclimate import schema
from acclimate.errors import DataError
from acclimate.files import leftovers, read_regular, write_json
from acclimate.locks import CLAIM, LOCK
from acclimate.methods.registry import BASELINE
from acclimate.runs.files import MAKE_AGAIN, RUN_FILES
from acclimate.runs.record import RunRecord, read_record, verify
from acclimate.runs.trackers import FOLDERS
from acclimate.schema import Checked
from acclimate.settings import check_recorded, comparable
from acclimate.tensors import DamagedTensorsError
from acclimate.training import Checkpoint

MEMBERS = "members"  # the folder, below that of a consensus, of its members' runs

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}

BEGUN = "checkpoint/run.json"

log = logging.getLogger("acclimate")


class Begun(Checked, frozen=True, kw_only=True):
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

    def check_same(self, *, begun: bool = True) -> None:
        """Refuse a folder that holds another run.

        Args:
            begun: Refuse it too if a run began there of which cannot be told which it is.

        Raises:
            DataError: It holds one, or it cannot be told.
        """
        if self.is_finished:
            self._check_same(read_record(self._record))
        elif self._begun.exists():
            try:
                noted = _read_begun(self._begun)
            except DataError:
                if begun:
                    raise
                return
            self._check_same(noted)

    @property
    def is_finished(self) -> bool:
        """Whether there is a record, which is the last that a run writes."""
        return self._record.exists()

    def finished(self) -> RunRecord | None:
        """The record, if the run is finished and all its files are as they were written.

        Raises:
            DataError: The folder holds another run, or the record is damaged.
        """
        if not self.is_finished:
            return None
        record = read_record(self._record)
        self._check_same(record)
        try:
            self._verify(record)
        except DataError as error:
            log.warning("%s The run is made again.", f"{str(error).partition(':')[0]}.")
            return None
        return record

    def _verify(self, record: RunRecord) -> None:
        """Check the files of a run, and those of its members."""
        verify(self.path, record)
        for member in record.trust.members if record.trust is not None else ():
            if member.failed is None:
                folder = self.path / member.folder
                verify(folder, read_record(folder / "record.json"))

    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint to go on from: the last that is whole; None where there is none.

        Raises:
            DataError: The folder holds another run, or it cannot be told.
        """
        damaged = False
        for path in (self._last, self._before):
            try:
                checkpoint = Checkpoint.load(path)
            except FileNotFoundError:
                continue
            except (DamagedTensorsError, OSError):
                damaged = True
                continue
            if checkpoint.run == self.identity:
                if damaged:
                    log.warning("The last checkpoint in %s is damaged: the run goes on from the one before.", self.path)
                return checkpoint
        self.check_same()
        if damaged:
            log.warning("The checkpoint in %s is damaged: the run begins anew.", self.path)
        return None

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint, and the one before it.

        Raises:
            OSError: It cannot be written; the one before is still there.
        """
        self._last.parent.mkdir(exist_ok=True)
        if self._last.exists():
            self._last.replace(self._before)
        checkpoint._replace(run=self.identity).save(self._last)

    @property
    def _record(self) -> Path:
        return self.path / "record.json"

    @property
    def _begun(self) -> Path:
        return self.path / BEGUN

    @property
    def _last(self) -> Path:
        return self.path / "checkpoint" / "last.safetensors"

    @property
    def _before(self) -> Path:
        return self.path / "checkpoint" / "before.safetensors"

    def begin(self) -> None:
        """Make the folder, which from now on is known by the run's identity.

        Raises:
            DataError: It cannot be written to.
        """
        begun = Begun(identity=self.identity, settings=dict(self.settings))
        try:
            self._begun.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._begun, schema.as_json(begun))
            self._record.unlink(missing_ok=True)  # of a run that is made again
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


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Tell of a disk that is full, or cannot be written to, while a run is made.

    Raises:
        DataError: That is why the block failed.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise DataError(
            f"{error.filename or out} cannot be written ({error.strerror}): make room for it, and the same command "
            "goes on from the last checkpoint."
        ) from error


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


def discard_damaged(out: Path) -> None:
    """Delete what a run noted of itself and cannot be read, in a folder that is named by its run: it is made again."""
    for path, read in ((out / "record.json", read_record), (out / BEGUN, _read_begun)):
        if path.exists():
            try:
                read(path)
            except DataError as error:
                log.warning("%s The run is made again.", f"{str(error).partition(':')[0]}.")
                path.unlink()


def _read_begun(path: Path) -> Begun:
    begun = schema.read(path, Begun, MAKE_AGAIN)
    with schema.told(path, MAKE_AGAIN):
        check_recorded(begun.settings, needed=())
    return begun


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
    for name in ("record.json", BEGUN):
        try:
            content = read_regular(out / name)
        except OSError:
            continue
        if b'"identity"' in content and b'"settings"' in content:
            return True
    return False


def _untouched(folder: Path) -> bool:
    """Whether a folder is empty, but for what a run leaves that is killed the moment it begins."""
    return all(
        entry.name in (LOCK, CLAIM)
        or entry.name.startswith((".run.json.", f".{CLAIM}."))
        or (entry.name in ("checkpoint", BASELINE) and entry.is_dir() and _untouched(entry))
        for entry in folder.iterdir()
    )
