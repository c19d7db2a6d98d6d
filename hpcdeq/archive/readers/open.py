"""Open a scene that was found with the reader for its format."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from hpcdeq.archive.readers.base import RawScene, Selection, Source
from hpcdeq.archive.readers.png import open_png


def open_raw(source: Source, selection: Selection, spool: Path) -> AbstractContextManager[RawScene]:
    """Open a raw scene for reading by windows.

    Parameters
    ----------
    source
        What `find` gave.
    selection
        Which array and axes, where the format leaves that open.
    spool
        An empty folder for what can only be decoded whole; the caller removes it.

    Raises
    ------
    SceneError
        If the file is damaged, or does not hold what was asked for.
    MissingExtraError
        If its format needs a library that is not installed.
    """
    if source.kind == "png":
        return open_png(source, spool)
    raise AssertionError(source.kind)
