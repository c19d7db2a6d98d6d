"""Every error a user can meet: what was wrong, the value, the rule, and what to do next.

Each class is also the built-in a Python caller would expect, and carries the exit code of the command line
(0 done, 1 failed, 2 usage or config, 3 finished but some units failed, 75 checkpointed for requeue, 130 interrupted).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HpcdeqError(Exception):
    """Base of all errors that are meant for the user."""

    exit_code = 1


class ConfigError(HpcdeqError, ValueError):
    """A setting, option or argument is wrong."""

    exit_code = 2


class ArchiveError(HpcdeqError, ValueError):
    """An archive, or a scene in it, is not what it should be."""


class ArchiveNotFoundError(ArchiveError, FileNotFoundError):
    """There is no archive, or no such scene, where one was asked for."""


class SceneError(HpcdeqError, ValueError):
    """One raw or stored scene cannot be used; the others can."""


class ModelFileError(HpcdeqError, ValueError):
    """A model or dictionary file is missing, damaged, or does not fit the data."""


class StorageError(HpcdeqError, OSError):
    """The output cannot be written: no space, no quota, no permission. What is finished stays."""


class TrainingError(HpcdeqError, RuntimeError):
    """Training cannot go on."""


class PreemptedError(HpcdeqError, RuntimeError):
    """The work was asked to stop, and did so at a checkpoint: the same command goes on."""

    exit_code = 75


class SubmissionError(HpcdeqError, RuntimeError):
    """A job could not be submitted."""


class JobError(HpcdeqError, RuntimeError):
    """A job that was waited for did not end well; the exit code is its own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class PeerError(HpcdeqError, RuntimeError):
    """Another process of the job failed or vanished."""


class FencedError(HpcdeqError, RuntimeError):
    """Another copy of this run has taken over; this one must not write any more."""


class MissingExtraError(HpcdeqError, ImportError):
    """An optional library is needed and not installed."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(
            f'{purpose} needs {library}, which is not installed; run: pip install "hpcdeq[{extra}]"'
        )
        self._made_of = library, extra, purpose

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, str]]:
        """How it is told to other processes."""
        return type(self), self._made_of


class PartialFailureError(HpcdeqError, RuntimeError):
    """The work is finished, but some scenes or units failed; they are listed."""

    exit_code = 3


def suggestion(name: str, valid: Iterable[str]) -> str:
    """Say which valid name an unknown one was perhaps meant to be, or what the valid ones are."""
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"valid keys: {', '.join(names)}"
