"""The few errors that a user can cause. Each is one sentence that names the cause and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MezzotintError(Exception):
    """Base of every error that the command answers with a sentence instead of a traceback."""


class ConfigError(MezzotintError):
    """A setting, a name or a combination of options that cannot work."""


class DataError(MezzotintError):
    """Pictures, labels or captions that cannot be read or do not fit the system."""


class CheckpointError(MezzotintError):
    """A saved model that is missing, damaged, foreign or unsafe to load."""


class TrainingError(MezzotintError):
    """A run that cannot go on: its gradients are no longer finite or its loss has exploded."""


def suggest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'ddpm'?"` for the nearest known word, or a list of all where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(word.lower(), [name.lower() for name in known], n=1, cutoff=0.5)
    if near:
        return f"; did you mean {next(name for name in known if name.lower() == near[0])!r}?"
    return f"; known are: {', '.join(known)}" if known else ""
