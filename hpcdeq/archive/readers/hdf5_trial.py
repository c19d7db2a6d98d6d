"""Read everything in an HDF5 file but its arrays, in a process of its own: ``python hdf5_trial.py FILE``.

In a damaged file the HDF5 library may not come back (a heap that is zeros keeps it busy for ever), or crash, and no exception
is raised. It imports h5py only, so that the process is there soon.
"""

import sys
from contextlib import suppress

import h5py


def touch(item: h5py.HLObject) -> None:
    """Read the attributes of an object, and the names of its dimensions."""
    for name in list(item.attrs):
        with suppress(Exception):
            item.attrs[name]
    for dimension in getattr(item, "dims", ()):
        with suppress(Exception):
            list(dimension.keys())


def touch_all(path: str) -> None:
    """Touch every object of a file; what is damaged but comes back is for the reader to name."""
    with suppress(Exception), h5py.File(path, "r", locking=False) as file:
        touch(file)
        names: list[str] = []
        file.visititems_links(
            lambda name, link: names.append(name) if isinstance(link, h5py.HardLink) else None
        )
        for name in names:
            with suppress(Exception):
                touch(file[name])


if __name__ == "__main__":
    touch_all(sys.argv[1])
