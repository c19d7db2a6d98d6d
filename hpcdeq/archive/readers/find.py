"""Find scenes in files and folders, by what the files hold: their endings are never trusted."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hpcdeq.archive.readers.base import Source
from hpcdeq.archive.readers.envi_pair import data_file_of, header_of
from hpcdeq.archive.readers.png import MAGIC as PNG_MAGIC
from hpcdeq.archive.readers.png import band_number

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_HDF5_OFFSETS = (0, 512, 1024, 2048)  # MATLAB v7.3 puts a block of 512 bytes in front
# A file in a folder that has one of these, but not the content, is damaged; others are none of our business.
_ENDINGS = frozenset({".mat", ".npy", ".npz", ".h5", ".hdf5", ".he5", ".nc", ".tif", ".tiff", ".hdr"})
_TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass
class Finding:
    """What a search of files and folders gave."""

    sources: list[Source] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)
    """(name, what is wrong) of what was asked for and cannot be a scene."""
    notes: list[str] = field(default_factory=list)


def sniff(path: Path) -> str | None:
    """Tell what a file holds from its content: a kind of `Source`, ``netcdf3``, or None."""
    with path.open("rb") as file:
        head = file.read(2056)
    if any(head[at : at + 8] == _HDF5_MAGIC for at in _HDF5_OFFSETS):
        return "hdf5"
    if head[126:128] in (b"IM", b"MI") and head[124:126] in (b"\x00\x01", b"\x01\x00"):
        return "matlab5"
    if head.startswith(_TIFF_MAGICS):
        return "geotiff"
    if head.startswith(b"PK\x03\x04"):
        return "npz" if _holds_arrays(path) else None
    if head.split(b"\n", 1)[0].strip() == b"ENVI":
        return "envi"
    magics = {"png": PNG_MAGIC, "npy": b"\x93NUMPY", "netcdf3": b"CDF"}
    return next((kind for kind, magic in magics.items() if head.startswith(magic)), None)


def _holds_arrays(path: Path) -> bool:
    """Whether a zip file is a .npz; documents and wheels are zip files too."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except Exception:  # the parser raises whatever it likes at damaged data
        return False


def find(raw: Iterable[Path], skip: Iterable[Path] = ()) -> Finding:
    """Find all scenes in files and folders; folders are searched to the bottom, in the order of their names.

    Parameters
    ----------
    raw
        Files and folders.
    skip
        Folders not to enter. Zarr groups are never entered.
    """
    finding = Finding()
    skipped = {p.resolve() for p in skip}
    for path in raw:
        try:
            if path.is_dir():
                for folder, files in _walk(path, skipped, finding):
                    _search(folder, files, finding)
            elif path.is_file():
                _file(path, finding)
            else:
                finding.errors.append((path.name or str(path), f"no such file or folder: {path}"))
        except OSError as error:
            finding.errors.append((path.name or str(path), f"cannot be read: {error}"))
    seen: set[Path] = set()
    unique: list[Source] = []
    for source in finding.sources:
        first = source.files[0].resolve()
        if first not in seen:
            seen.add(first)
            unique.append(source)
    finding.sources = unique
    return finding


def _walk(root: Path, skipped: set[Path], finding: Finding) -> Iterator[tuple[Path, list[Path]]]:
    def unreadable(error: OSError) -> None:
        finding.errors.append((Path(error.filename).name, f"folder cannot be read: {error}"))

    for folder, folders, files in os.walk(root.resolve(), onerror=unreadable):
        here = Path(folder)
        if here in skipped or "zarr.json" in files:
            folders.clear()
            continue
        folders.sort()
        yield here, [here / name for name in sorted(files)]


def _search(folder: Path, files: list[Path], finding: Finding) -> None:
    """Add the scenes of one folder, and a note on what is none."""
    kinds: dict[Path, str | None] = {}
    for path in files:
        try:
            if path.is_file():
                kinds[path] = sniff(path)
        except OSError as error:
            finding.errors.append((path.stem, f"cannot be read: {error}"))
    claimed: set[Path] = set()
    bands = sorted(
        (f for f, kind in kinds.items() if _is_png(f, kind) and band_number(f) is not None),
        key=lambda f: (band_number(f) or 0, f.name),
    )
    if len(bands) > 1:
        finding.sources.append(Source(folder.name, "png", folder, tuple(bands)))
        claimed.update(bands)
    for header in [f for f, kind in kinds.items() if kind == "envi"]:
        claimed.update(_envi(header, finding))
    for path, kind in kinds.items():
        if kind not in (None, "png", "envi") and path not in claimed:
            claimed.add(path)
            _array_file(path, str(kind), finding)
    for path in [f for f in kinds if f not in claimed and f.suffix.lower() in _ENDINGS]:
        claimed.add(path)
        _unknown(path, finding)
    ignored = [f.name for f in kinds if f not in claimed]
    if ignored:
        names = ", ".join(ignored[:4]) + (f" and {len(ignored) - 4} more" if len(ignored) > 4 else "")
        finding.notes.append(f"ignored in {folder.name}: {names} (no scene)")


def _file(path: Path, finding: Finding) -> None:
    """Add the scene that a file named by the user is or belongs to."""
    kind = sniff(path)
    header = path if kind == "envi" else header_of(path)
    if header is not None and (kind == "envi" or sniff(header) == "envi"):
        _envi(header, finding)
    elif kind == "png":
        finding.errors.append(
            (path.stem, "one PNG is one band; give the folder that holds all bands of the scene")
        )
    elif kind is None:
        _unknown(path, finding)
    else:
        _array_file(path, kind, finding)


def _is_png(path: Path, kind: str | None) -> bool:
    """Whether a file is a band, or was meant to be: one cut to nothing must not pass for one never there."""
    return kind == "png" or (kind is None and path.suffix.lower() == ".png")


def _unknown(path: Path, finding: Finding) -> None:
    known = "PNG band folders, ENVI, MATLAB .mat, HDF5, NetCDF4, GeoTIFF, .npy and .npz"
    finding.errors.append((path.stem, f"{path.name} is damaged or of an unknown format; known are {known}"))


def _array_file(path: Path, kind: str, finding: Finding) -> None:
    if kind == "netcdf3":
        finding.errors.append(
            (path.stem, f"classic NetCDF; convert it with: nccopy -k nc4 {path.name} new.nc")
        )
    else:
        finding.sources.append(Source(path.stem, kind, path, (path,)))


def _envi(header: Path, finding: Finding) -> tuple[Path, ...]:
    """Add an ENVI scene by its header; return its files."""
    data = data_file_of(header)
    if data is None:
        finding.errors.append(
            (header.stem, f"ENVI header {header.name} has no data file beside it; copy it from its source")
        )
        return (header,)
    finding.sources.append(Source(data.stem, "envi", data, (header, data)))
    return header, data
