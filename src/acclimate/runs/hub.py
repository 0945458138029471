"""Models on the Hugging Face Hub: fetched by name, and published with a card that says how each figure was obtained.

A stranger's repository is data: three files of it are fetched, nothing is unpickled, and none of its code is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from acclimate.errors import DataError, OptionError
from acclimate.files import as_json_text
from acclimate.model import ModelSpec, check_weights
from acclimate.outside import LOCAL, last_part
from acclimate.runs.card import card
from acclimate.runs.record import RunRecord, read_record
from acclimate.runs.reference import FILE as REFERENCE
from acclimate.schema import CHECKSUM, as_json, checksum

FETCHED = ("model.json", "model.safetensors", "record.json", REFERENCE)

_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)

_REVISION = re.compile(r"[\w][\w./-]*", re.ASCII)


def located(run: str | Path) -> Path:
    """The folder of a run: the one that is named, or that of a copy of `hf://OWNER/NAME` or `hf://OWNER/NAME@REVISION`.

    The copy lies in the cache of huggingface_hub. It is fetched if it is not there, or no longer the newest.

    Raises:
        OptionError: It is no name of a repository.
        DataError: There is no such repository or revision, or it cannot be fetched.
    """
    text = PurePath(run).as_posix() if isinstance(run, Path) else run
    if not text.startswith("hf:"):
        return Path(run)
    name, _, revision = re.sub("^hf:/*", "", text).partition("@")
    if not _NAME.fullmatch(name) or (revision and (not _REVISION.fullmatch(revision) or ".." in revision)):
        raise OptionError(f"{text} names no model on the hub: write hf://OWNER/NAME or hf://OWNER/NAME@REVISION.")
    import huggingface_hub

    with _told(name, revision):
        folder = huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=list(FETCHED))
    return Path(str(folder))


def push(
    run: Path,
    name: str,
    *,
    private: bool = False,
    license: str | None = None,  # noqa: A002 (what the hub calls it)
    with_predictions: bool = False,
    with_report: bool = False,
    with_reference: bool = False,
) -> str:
    """Publish the model of a run on the hub, with a card, and its record without paths.

    Names of images and images themselves stay here unless they are asked for: the predictions have the names, the
    report both, and the sample of the target its features.

    Args:
        run: The run directory.
        name: OWNER/NAME of the repository, which is made if need be.
        private: Make it a private one.
        license: The model's licence, as the hub names it: mit, cc-by-4.0, ...
        with_predictions: Publish predictions.csv as well.
        with_report: Publish report.html as well.
        with_reference: Publish reference.safetensors as well, for `watch`.

    Returns:
        Where it is now.

    Raises:
        OptionError: The name is none.
        DataError: The run is not finished, lacks a file or is damaged, or the hub refuses it.
    """
    if not _NAME.fullmatch(name):
        raise OptionError(f"{name} names no repository: write OWNER/NAME.")
    record = read_record(run / "record.json")
    wanted = {"predictions.csv": with_predictions, "report.html": with_report, REFERENCE: with_reference}
    as_they_are = ["model.safetensors", *(file for file, asked in wanted.items() if asked)]
    missing = [file for file in as_they_are if not (run / file).exists()]
    if missing:
        raise DataError(f"{run} has no {missing[0]}: make the run again, or leave out its option.")
    check_weights(run)
    content: dict[str, bytes | Path] = {file: run / file for file in as_they_are}
    content["model.json"] = as_json_text(_public_spec(run)).encode(errors="backslashreplace")
    content["record.json"] = as_json_text(public_record(record)).encode(errors="backslashreplace")
    content["README.md"] = card(record, name, license).encode()

    import huggingface_hub

    operations = [
        huggingface_hub.CommitOperationAdd(path_in_repo=file, path_or_fileobj=part) for file, part in content.items()
    ]
    with _told(name, ""):
        api = huggingface_hub.HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        api.create_commit(name, operations, commit_message="Publish a model of Acclimate")
    return f"https://huggingface.co/{name}"


def _public_spec(run: Path) -> Any:
    """The content of model.json, without the folder of a method's or a backbone's file."""
    entry = json.loads((run / "model.json").read_text(encoding="utf-8"))
    spec = ModelSpec.from_json(entry)
    if spec.backbone is not None and spec.backbone.startswith(LOCAL):
        raise DataError(f"The backbone of {run} is a folder of this machine, which nobody else has: it stays here.")
    return _checked({**entry, "method": last_part(spec.method), "backbone": spec.backbone and last_part(spec.backbone)})


def public_record(record: RunRecord) -> Any:
    """A record as JSON, without its command and with the last part of each path alone."""
    entries = as_json(record)
    start = record.data.paths_start_from
    data = entries["data"]
    origins = [side["origin"] for side in (data["source"], data["target"], data["test"]) if side is not None]
    texts = [value for value in entries["settings"].values() if isinstance(value, str)]
    told = {path for path in (*origins, *texts) if "/" in path or "\\" in path}
    absolute = {str(Path(start, path)) for path in told}
    known = sorted({*told, *absolute, start, str(Path.home())} - {"", "/"}, key=len, reverse=True)
    entries["command"] = []
    data["paths_start_from"] = ""
    public = _without(known, entries)
    public["files"].pop("model.json", None)  # that is written anew as well
    return _checked(public)


def _checked(entries: dict[str, Any]) -> dict[str, Any]:
    """Entries with their checksum, which those that they were made of may have had."""
    kept = {name: value for name, value in entries.items() if name != CHECKSUM}
    return {**kept, CHECKSUM: checksum(kept)}


def _without(paths: list[str], value: Any) -> Any:
    """Every text without the folders of these paths."""
    if isinstance(value, Mapping):
        return {key: _without(paths, part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without(paths, part) for part in value]
    if not isinstance(value, str):
        return value
    for path in paths:
        value = value.replace(path, ",".join(last_part(part) for part in path.split(",")))
    return value


@contextmanager
def _told(name: str, revision: str) -> Iterator[None]:
    """Say in a sentence what the hub refuses."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise DataError(f"{name} is open to those alone who have asked on its page: ask there, then log in.") from error
    except errors.RepositoryNotFoundError as error:
        raise DataError(
            f"There is no {name} on the hub, or it is private: check the name, or log in with `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DataError(f"{name} has no revision {revision}: check it on the page of its commits.") from error
    except errors.LocalEntryNotFoundError as error:
        raise DataError(f"The hub cannot be reached, and there is no copy of {name} here: try again later.") from error
    except Exception as error:  # of the network, below, which has a dozen unrelated types
        reason = (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__
        raise DataError(f"The hub refused {name} ({reason}): check that you are logged in and may do that.") from error
