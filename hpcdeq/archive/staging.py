"""A folder whose entries are made aside and moved in, in one step: nothing in it is half visible."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
import uuid
from collections.abc import Collection
from pathlib import Path

from hpcdeq.archive import layout
from hpcdeq.archive.shard import metadata
from hpcdeq.errors import ArchiveError

_STALE_SECONDS = 24 * 3600.0


class StagedFolder:
    """A folder of scenes, and the one beside it for those that are not complete yet.

    Parameters
    ----------
    path
        The folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def staging(self) -> Path:
        """Folder beside the archive for scenes that are not complete yet."""
        return beside(self.path, "staging")

    def shared_path(self, name: str, fingerprint: str) -> Path:
        """Folder of a shared draft."""
        return self.staging / f"{layout.check_name(name)}@{fingerprint}"

    def fingerprint(self, name: str) -> str | None:
        """Return that of a complete scene that was made from a shared draft; None if there is none."""
        try:
            found = metadata(self.path / layout.check_name(name), "group")["attributes"][layout.FINGERPRINT]
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return None
        return found if isinstance(found, str) else None

    def discard(self, path: Path) -> None:
        """Remove a scene or a draft, if it is there: moved aside first, as nobody must go on with what a kill leaves of it."""
        aside = self.attempt(path.name.partition("@")[0])
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def attempt(self, name: str) -> Path:
        """Path in the staging folder that no other process uses; it tells whose it is."""
        check_no_link(self.staging)
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


def check_no_link(path: Path) -> None:
    """Raise an ArchiveError if what is written to is a link: what it leads to is replaced and removed like one's own."""
    if path.is_symlink():
        raise ArchiveError(
            f"{path} is a link to {path.readlink()}; give the folder itself, or remove the link"
        )
