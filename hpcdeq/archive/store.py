"""Archives: a root group on disk, and one group for each complete scene."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import zarr

from hpcdeq.archive import layout
from hpcdeq.archive.draft import SceneDraft
from hpcdeq.archive.layout import SceneHeader
from hpcdeq.archive.scene import Scene
from hpcdeq.archive.shard import metadata
from hpcdeq.archive.staging import StagedFolder, check_no_link
from hpcdeq.errors import ArchiveError, ArchiveNotFoundError, ConfigError, SceneError


class Archive(StagedFolder):
    """A folder of scenes. Iterating gives the scenes' names in order; ``archive[name]`` opens one."""

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
            return "hpcdeq_schema" in metadata(self.path, "group")["attributes"]
        except (OSError, ValueError, KeyError, TypeError):
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

    def remove(self, name: str) -> None:
        """Remove a complete scene, if there is one."""
        self.staging.mkdir(exist_ok=True)
        self.discard(self.path / layout.check_name(name))


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
        If there is something else, or an archive of another schema; or a link, if it may be made.
    ConfigError
        If it would be made inside another archive, where it would be taken for a damaged scene.
    """
    path = Path(path)
    if create:
        check_no_link(path)
    if create and (not path.exists() or (path.is_dir() and not any(path.iterdir()))):
        for folder in path.resolve().parents:
            if (folder / "zarr.json").is_file():
                raise ConfigError(
                    f"{path} would lie inside the archive {folder}; choose a folder outside of it"
                )
        Archive(path).make_root()
    if not path.exists():
        raise ArchiveNotFoundError(
            f"no archive at {path}; make one with: hpcdeq ingest RAW... --archive {path}"
        )
    try:
        schema = dict(metadata(path, "group")["attributes"]).get("hpcdeq_schema")
    except (OSError, ValueError, KeyError, TypeError) as error:
        advice = "choose another folder" if create else "hpcdeq ingest makes archives of raw scenes"
        raise ArchiveError(
            f"{path} is not an hpcdeq archive: it has no Zarr v3 root group; {advice}"
        ) from error
    if schema is None:
        raise ArchiveError(
            f"{path} is a Zarr group, but not an hpcdeq archive: it has no 'hpcdeq_schema' attribute"
        )
    layout.check_schema(schema, str(path), ArchiveError)
    return Archive(path)
