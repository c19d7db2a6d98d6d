"""Raw files into an archive: found, checked, written by whole shards, and shown only when complete."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from dask.base import compute
from dask.delayed import delayed
from numpy.typing import NDArray

from hpcdeq.archive import layout
from hpcdeq.archive.layout import SceneHeader
from hpcdeq.archive.readers import RawScene, Selection, Source, find, open_raw
from hpcdeq.archive.scan import Scan, read_clean, scan, stored_dtype, windows_of
from hpcdeq.archive.staging import beside
from hpcdeq.archive.store import Archive, open_archive
from hpcdeq.errors import ConfigError, HpcdeqError, SceneError, StorageError


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """How raw scenes are read; the same for all scenes of a run."""

    variable: str | None = None
    """Array to take from files that hold several."""
    axes: str | None = None
    """Order of the axes in the file, such as ``yxb``."""
    scale: float | None = None
    """The value that maps to 1.0; goes before the one the format tells."""
    skip_bands: tuple[int, ...] = ()
    """Bands to leave out, counted from 0."""

    def __post_init__(self) -> None:
        if self.axes is not None and sorted(self.axes) != ["b", "x", "y"]:
            raise ConfigError(f"--axes must hold each of y, x and b once, such as yxb; got {self.axes!r}")
        if self.scale is not None and not (np.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(
                f"--scale must be a positive number, the value that maps to 1.0; got {self.scale}"
            )

    def stored(self) -> dict[str, Any]:
        """Return what is kept with the scene, to tell on a second run whether it would come out the same."""
        return {**asdict(self), "skip_bands": list(self.skip_bands)}


@dataclass(frozen=True)
class Outcome:
    """What became of one raw scene."""

    name: str
    status: str
    """ingested, skipped, or failed."""
    message: str
    """What it is, why it was skipped, or what is wrong and what to do."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Format, variable, shape, dtype, wavelengths, full scale: for scripts."""
    notes: tuple[str, ...] = ()


def ingest(
    raw: Sequence[Path],
    archive: Path,
    options: IngestOptions,
    *,
    overwrite: bool = False,
    workers: int = 1,
    tell: Callable[[Outcome], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
) -> list[Outcome]:
    """Bring raw scenes into an archive, which is made if it does not exist.

    Parameters
    ----------
    raw
        Files and folders; folders are searched to the bottom.
    archive
        Folder of the archive.
    options
        How to read them.
    overwrite
        Redo scenes that are there already, from another source or with other options.
    workers
        Scenes worked on at once.
    tell, note
        Called with every outcome as soon as it is known, and with remarks about the search.

    Returns
    -------
    outcomes
        One for every scene found and every error; nothing is raised for a scene that cannot be used.

    Raises
    ------
    ConfigError
        If there is nothing to ingest in ``raw``, or it is the archive itself.
    ArchiveError
        If ``archive`` is something else.
    StorageError
        If there is no room for the archive; scenes that are complete stay.
    """
    if not any(path.exists() for path in raw):
        raise ConfigError(
            f"no such file or folder: {', '.join(map(str, raw))}; name what holds the raw scenes"
        )
    if archive.resolve() in [path.resolve() for path in raw]:
        raise ConfigError(
            f"--archive {archive} is the folder of the raw scenes; choose another one for the archive"
        )
    finding = find(raw, skip=(archive, beside(archive, "staging")))
    for text in finding.notes:
        note(text)
    if not finding.sources and not finding.errors:
        raise ConfigError(
            f"no scene found in {', '.join(str(p) for p in raw)}; see docs/ingest.md for what is known"
        )
    failed = [Outcome(name, "failed", message) for name, message in finding.errors]
    if finding.sources:
        target = open_archive(archive, create=True)
        target.sweep()
    sources, twice = _unique(finding.sources)
    failed += twice
    for outcome in failed:
        tell(outcome)

    def work(source: Source) -> Outcome:
        outcome = _ingest_safely(target, source, options, overwrite)
        tell(outcome)
        return outcome

    tasks = [delayed(work, pure=False)(source) for source in sources]
    try:
        done = compute(*tasks, scheduler="threads", num_workers=workers)
    finally:
        if finding.sources:
            target.close()
    return [*done, *failed]


def _unique(sources: list[Source]) -> tuple[list[Source], list[Outcome]]:
    """Keep the first source of every name."""
    first: dict[str, Source] = {}
    twice: list[Outcome] = []
    for source in sources:
        if source.name in first:
            taken = first[source.name].path
            message = f"{source.path} has the same name as {taken}, which was taken; rename one of them"
            twice.append(Outcome(source.name, "failed", message))
        else:
            first[source.name] = source
    return list(first.values()), twice


def _ingest_safely(archive: Archive, source: Source, options: IngestOptions, overwrite: bool) -> Outcome:
    try:
        return _ingest_one(archive, source, options, overwrite)
    except HpcdeqError as error:
        return Outcome(source.name, "failed", str(error))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):  # the others would meet it too
            raise StorageError(
                f"{archive.path} cannot be written: {error.strerror}; what is finished stays, and the same command goes on"
            ) from error
        return Outcome(source.name, "failed", f"cannot be read: {error}; copy it again from its source")
    except Exception as error:  # one bad file must not end the others, whatever a library raises at it
        message = f"cannot be ingested ({type(error).__name__}: {error}); copy it again from its source"
        return Outcome(source.name, "failed", message)


def _ingest_one(archive: Archive, source: Source, options: IngestOptions, overwrite: bool) -> Outcome:
    layout.check_name(source.name)
    digest = sha256_of(source.files)
    if source.name in archive and not overwrite:
        return _compare(archive, source, digest, options)
    selection = Selection(options.variable, options.axes)
    with _spool(archive, source.name) as spool, open_raw(source, selection, spool) as raw:
        kept = _kept_bands(raw.shape[0], options.skip_bands)
        seen = scan(raw, kept, windows_of(raw, len(kept)))
        full_scale, full_scale_from = _full_scale(raw, seen, options.scale)
        header = SceneHeader(
            shape=(len(kept), *raw.shape[1:]),
            dtype=stored_dtype(raw.dtype, seen),
            scale_factor=1.0 / full_scale,
            wavelengths=None if raw.wavelengths is None else raw.wavelengths[kept],
            fwhm=None if raw.fwhm is None else raw.fwhm[kept],
            has_mask=seen.masked > 0,
            attributes={
                **raw.attributes,
                "source": source.path.name,
                "source_format": raw.format,
                "source_variable": raw.variable,
                "source_sha256": digest,
                "full_scale": full_scale,
                "full_scale_from": full_scale_from,
                "ingest_options": options.stored(),
            },
        )
        _write(archive, source.name, header, raw, kept)
        facts = _facts(header, seen.masked)
        return Outcome(source.name, "ingested", _describe(facts), facts, raw.notes)


def _compare(archive: Archive, source: Source, digest: str, options: IngestOptions) -> Outcome:
    """Skip a scene that is there already, unless it would come out differently now."""
    try:
        stored = archive[source.name].attributes
    except SceneError as error:
        raise SceneError(f"is in the archive, but damaged ({error}); --overwrite replaces it") from error
    if stored.get("source_sha256") != digest:
        raise SceneError(
            f"is in the archive from another source ({stored.get('source')}); --overwrite replaces it"
        )
    if stored.get("ingest_options") != options.stored():
        raise SceneError(
            f"is in the archive with other options ({stored.get('ingest_options')}); --overwrite replaces it"
        )
    return Outcome(source.name, "skipped", "already there, from the same bytes with the same options")


def _write(archive: Archive, name: str, header: SceneHeader, raw: RawScene, kept: NDArray[np.intp]) -> None:
    draft = archive.draft(name, header)
    try:
        for window in windows_of(raw, len(kept)):
            values, masked = read_clean(raw, window, kept)
            draft.write(window, values.astype(header.dtype, copy=False))
            if header.has_mask:
                assert masked is not None, "the scan found masked pixels"
                draft.write_mask(window, ~masked)
        draft.publish()
    except BaseException:
        draft.discard()
        raise


def sha256_of(files: Sequence[Path]) -> str:
    """Return the sha256 of all bytes of the files, one after the other (``cat FILES | sha256sum``)."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def _spool(archive: Archive, name: str) -> Iterator[Path]:
    """A folder for decoded data, named like the drafts: `Archive.sweep` removes what a kill leaves."""
    folder = archive.attempt(name)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _kept_bands(bands: int, skipped: tuple[int, ...]) -> NDArray[np.intp]:
    beyond = [b for b in skipped if not 0 <= b < bands]
    if beyond:
        raise SceneError(f"--skip-bands names band {beyond[0]}, but there are {bands}, counted from 0")
    kept = np.setdiff1d(np.arange(bands), np.array(skipped, int))
    if not len(kept):
        raise SceneError(f"--skip-bands leaves none of the {bands} bands")
    return kept


def _full_scale(raw: RawScene, seen: Scan, said: float | None) -> tuple[float, str]:
    """Return the value that maps to 1.0, and where it comes from."""
    if said is not None:
        return said, "--scale"
    if raw.full_scale is not None:
        if not (np.isfinite(raw.full_scale) and raw.full_scale > 0):
            raise SceneError(
                f"its {raw.full_scale_from} is {raw.full_scale:g}, which is no full scale; say it with --scale VALUE"
            )
        return raw.full_scale, raw.full_scale_from
    if raw.dtype.kind == "f" and 0.0 < seen.high <= 1.0:
        return 1.0, "floats up to 1"
    if seen.high <= 0.0:
        raise SceneError(
            f"the largest value is {seen.high:g}, so the full scale is unknown; say it with --scale VALUE"
        )
    return seen.high, "measured maximum"


def _facts(header: SceneHeader, masked: int) -> dict[str, Any]:
    return {
        "format": header.attributes["source_format"],
        "variable": header.attributes["source_variable"],
        "shape": list(header.shape),
        "dtype": str(header.dtype),
        "wavelengths": None if header.wavelengths is None else header.wavelengths.tolist(),
        "full_scale": header.attributes["full_scale"],
        "full_scale_from": header.attributes["full_scale_from"],
        "masked_pixels": masked,
    }


def _describe(facts: dict[str, Any]) -> str:
    bands, height, width = facts["shape"]
    nm = facts["wavelengths"]
    parts = [
        facts["format"] + (f", variable {facts['variable']}" if facts["variable"] else ""),
        f"{bands} bands x {height} rows x {width} columns",
        facts["dtype"],
        f"{min(nm):g}-{max(nm):g} nm" if nm else "wavelengths unknown",
        f"full scale {facts['full_scale']:g} ({facts['full_scale_from']})",
    ]
    if facts["masked_pixels"]:
        parts.append(f"{facts['masked_pixels']} masked pixels")
    return ", ".join(parts)
