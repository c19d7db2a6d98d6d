"""Archives: a root group on disk, one group for each complete scene, and a place aside for those being written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import zarr

from hpcdeq.archive import layout
from hpcdeq.archive.draft import SceneDraft
from hpcdeq.archive.layout import SceneHeader
from hpcdeq.archive.scene import Scene
from hpcdeq.errors import ArchiveError, ArchiveNotFoundError, SceneError

_STALE_SECONDS = 24 * 3600.0


class Archive:
    """A folder of scenes. Iterating gives the scenes' names in order; ``archive[name]`` opens one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """Names of all complete scenes, sorted; also of one that has lost its metadata, so that it is not passed over."""
        return sorted(p.name for p in self.path.iterdir() if not p.name.startswith(".") and _is_scene(p))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: str) -> bool:
        return _is_scene(self.path / layout.check_name(name))

    def __getitem__(self, name: str) -> Scene:
        if name not in self:
            known = ", ".join(self.names()[:10]) or "none"
            raise ArchiveNotFoundError(f"no scene {name!r} in {self.path}; it holds: {known}")
        return Scene(self.path / name)

    def readable(self, names: Iterable[str]) -> list[Scene]:
        """Open those of some scenes that can be opened."""
        found = []
        for name in names:
            with contextlib.suppress(SceneError):
                found.append(self[name])
        return found

    def scenes(self) -> list[Scene]:
        """Open every scene."""
        return [self[name] for name in self]

    def has_root(self) -> bool:
        """Whether there is a root group, of this schema or another."""
        try:
            return "hpcdeq_schema" in zarr.open_group(self.path, mode="r", zarr_format=3).attrs
        except Exception:  # of damaged metadata Zarr raises whatever it likes
            return False

    def make_root(self) -> None:
        """Write the root group; scenes that are there stay."""
        # Aside: what a killed process has half made could neither be opened nor made again.
        making = self.attempt("root")
        zarr.create_group(making, zarr_format=3, attributes={"hpcdeq_schema": layout.SCHEMA})
        self.path.mkdir(parents=True, exist_ok=True)
        (making / "zarr.json").replace(self.path / "zarr.json")
        shutil.rmtree(making)
        self.close()

    @property
    def staging(self) -> Path:
        """Folder beside the archive for scenes that are not complete yet."""
        return beside(self.path, "staging")

    def draft(self, name: str, header: SceneHeader) -> SceneDraft:
        """Begin a scene of your own: aside, under a name that no other process uses."""
        return SceneDraft(self, name, header, self.attempt(name))

    def shared_draft(self, name: str, header: SceneHeader, fingerprint: str) -> SceneDraft:
        """Begin, or go on with, a scene that is written over several runs, or by several processes.

        ``fingerprint`` tells what will be in it.
        """
        return SceneDraft(self, name, header, self.shared_path(name, fingerprint), fingerprint)

    def reopen(
        self, name: str, header: SceneHeader, fingerprint: str, damaged: Collection[str]
    ) -> SceneDraft:
        """Take a scene that was made from a shared draft out of the archive, to write it again where it is damaged.

        What lies beside the pixels is put right, or is to be attached again; of damaged pixels whole shards must be written.

        Parameters
        ----------
        name, header, fingerprint
            As those of `shared_draft`.
        damaged
            Files that are missing or have other bytes than were written, by their paths inside the scene.

        Raises
        ------
        SceneError
            If one of them is no file of a scene.
        """
        for file in damaged:
            if Path(file).is_absolute() or ".." in Path(file).parts or not Path(file).parts:
                raise SceneError(f"{file!r} is not a file of scene {name}")
        self.staging.mkdir(exist_ok=True)
        visible, path = self.path / layout.check_name(name), self.shared_path(name, fingerprint)
        if visible.exists():
            self.discard(path)  # a copy of a worker may have left it; the scene in the archive is more
            visible.rename(path)
        return SceneDraft(self, name, header, path, fingerprint, damaged)

    def shared_path(self, name: str, fingerprint: str) -> Path:
        """Folder of a shared draft."""
        return self.staging / f"{layout.check_name(name)}@{fingerprint}"

    def fingerprint(self, name: str) -> str | None:
        """Return that of a complete scene that was made from a shared draft; None if there is none."""
        try:
            attributes = json.loads((self.path / layout.check_name(name) / "zarr.json").read_text())[
                "attributes"
            ]
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return None
        found = attributes.get(layout.FINGERPRINT)
        return found if isinstance(found, str) else None

    def remove(self, name: str) -> None:
        """Remove a complete scene, if there is one."""
        self.staging.mkdir(exist_ok=True)
        self.discard(self.path / layout.check_name(name))

    def discard(self, path: Path) -> None:
        """Remove a scene or a draft, if it is there: moved aside first, as nobody must go on with what a kill leaves of it."""
        aside = self.attempt(path.name.partition("@")[0])
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def attempt(self, name: str) -> Path:
        """Path in the staging folder that no other process uses; it tells whose it is."""
        owner = f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        return self.staging / f"{layout.check_name(name)}@{owner}"

    def sweep(self, wanted: Collection[Path] | None = None) -> None:
        """Remove attempts that killed runs left aside: those of dead processes of this host, of others after a day.

        Parameters
        ----------
        wanted
            Shared drafts that are to be gone on with; the others are removed. None keeps them all.
        """
        try:
            there = list(self.staging.iterdir())
        except FileNotFoundError:
            return
        for left in there:
            owner = left.name.partition("@")[2].rsplit(".", 2)
            if len(owner) != 3:  # a shared draft, which waits to be gone on with
                if wanted is not None and left not in wanted:
                    self.discard(left)
                continue
            host, pid, _ = owner
            dead = host == socket.gethostname() and not Path(f"/proc/{pid}").exists()
            with contextlib.suppress(FileNotFoundError):  # its owner is done with it
                if dead or time.time() - left.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()

    def close(self) -> None:
        """Remove the staging folder if nothing is left in it: the last thing a run does that writes alone.

        Of several, another may be about to write there.
        """
        with contextlib.suppress(OSError):  # another process writes there, or it never existed
            self.staging.rmdir()


def beside(archive: Path, kind: str) -> Path:
    """Folder of a kind beside an archive, named after it."""
    path = Path(os.path.abspath(archive))  # noqa: PTH100 - that of `.` has a name, and links stay links
    return path.with_name(f"{path.name}.{kind}")


def _is_scene(path: Path) -> bool:
    return (path / "zarr.json").is_file() or (path / layout.RADIANCE).is_dir()


def open_archive(path: Path | str, *, create: bool = False) -> Archive:
    """Open an archive.

    Parameters
    ----------
    path
        Folder of the archive's root group.
    create
        Make an empty archive if there is nothing at ``path``.

    Raises
    ------
    ArchiveNotFoundError
        If there is nothing at ``path`` and ``create`` is False.
    ArchiveError
        If there is something else, or an archive of another schema.
    """
    path = Path(path)
    if create and (not path.exists() or (path.is_dir() and not any(path.iterdir()))):
        Archive(path).make_root()
    if not path.exists():
        raise ArchiveNotFoundError(
            f"no archive at {path}; make one with: hpcdeq ingest RAW... --archive {path}"
        )
    try:
        schema = zarr.open_group(path, mode="r", zarr_format=3).attrs.get("hpcdeq_schema")
    except (OSError, ValueError, TypeError) as error:
        raise ArchiveError(f"{path} is not an hpcdeq archive: it has no Zarr v3 root group") from error
    if schema is None:
        raise ArchiveError(
            f"{path} is a Zarr group, but not an hpcdeq archive: it has no 'hpcdeq_schema' attribute"
        )
    layout.check_schema(schema, str(path), ArchiveError)
    return Archive(path)
