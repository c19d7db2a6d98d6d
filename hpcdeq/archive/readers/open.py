"""Open a scene that was found with the reader for its format."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from hpcdeq.archive.readers.base import RawScene, Selection, Source
from hpcdeq.archive.readers.envi import open_envi
from hpcdeq.archive.readers.geotiff import open_geotiff
from hpcdeq.archive.readers.hdf5 import open_hdf5
from hpcdeq.archive.readers.matlab5 import open_matlab5
from hpcdeq.archive.readers.numpy_files import open_npy, open_npz
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
    readers: dict[str, Callable[[], AbstractContextManager[RawScene]]] = {
        "png": lambda: open_png(source, spool),
        "envi": lambda: open_envi(source),
        "hdf5": lambda: open_hdf5(source, selection),
        "matlab5": lambda: open_matlab5(source, selection),
        "npy": lambda: open_npy(source, selection),
        "npz": lambda: open_npz(source, selection, spool),
        "geotiff": lambda: open_geotiff(source),
    }
    return readers[source.kind]()
