"""The errors a user can mend: each message is one sentence that says what is wrong and what to do."""

import difflib
from collections.abc import Iterable

LONGEST = 60  # characters of a value that a sentence shows


class AcclimateError(Exception):
    """Something the user can mend: the command line prints the sentence and exits with 2."""


class DataError(AcclimateError, ValueError):
    """The source, the target or an image list cannot be used as given."""


class OptionError(AcclimateError, ValueError):
    """An option has a name or a value that does not exist or does not fit the others."""


class DivergedError(AcclimateError):
    """Training produced a value that is not finite; the message names the term that did."""


class ProcessLostError(AcclimateError):
    """Another of the processes that train together has failed or ended; if it failed, it says why itself."""


class RunsFailedError(AcclimateError):
    """Some runs of a bench failed; the message names the first and where all of them are named."""


def brief(value: object) -> str:
    """A value as a sentence shows it: in Python's notation, but never longer than a line."""
    try:
        text = repr(value)
    except Exception:  # a number of thousands of digits, or an object that shows itself badly
        return f"{'a number of too many digits' if isinstance(value, int) else f'a {type(value).__name__}'}"
    text = text.replace("\n", " ")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence on a name that does not exist: what was probably meant, or else what there is."""
    names = list(known) or ["none"]
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}."
