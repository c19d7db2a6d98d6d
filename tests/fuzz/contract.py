"""What reading a hostile file may do: give a result, or one of the project's own errors that names the file. Nothing else."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpcdeq.errors import HpcdeqError

MOST_BYTES = 1 << 30
MOST_SECONDS = 20
_WRITES = {
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.chmod",
}
_NEVER = {
    *("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"),
    *(
        "socket.connect",
        "socket.bind",
        "urllib.Request",
        "ctypes.dlopen",
        "ftplib.connect",
        "http.client.connect",
    ),
}


class BrokenContractError(Exception):
    """What was read made the package do something that it must not."""


class _Hang(BaseException):
    """Not an Exception, so that nobody catches it on the way."""


class Watch:
    """Watches what is done while hostile files are read. Audit hooks cannot be taken away again: one for the whole process.

    Parameters
    ----------
    place
        The only folder in which anything may be written.
    """

    def __init__(self) -> None:
        self._place: str | None = None
        self._seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._place is None:
            return
        if event in _NEVER and not (event == "ctypes.dlopen" and arguments[0] is None):
            self._refuse(f"{event} {arguments!r}")
        elif event in _WRITES or event.startswith("shutil.") or (event == "open" and _for_writing(arguments)):
            folders = [a for a in arguments if type(a) is int and a >= 0] if event != "open" else []
            for path in arguments[:1] if event == "open" else arguments:
                if isinstance(path, str | bytes | os.PathLike) and not self._is_inside(
                    os.fsdecode(path), folders
                ):
                    self._refuse(f"{event} {arguments!r}")

    def _refuse(self, what: str) -> None:
        self._seen.append(what[:500])
        raise PermissionError(f"a hostile file made it try: {what[:500]}")

    def _is_inside(self, path: str, folders: Sequence[int]) -> bool:
        assert self._place is not None
        if folders and not os.path.isabs(path):  # noqa: PTH117
            path = f"/proc/self/fd/{folders[-1]}/{path}"  # relative to an open folder
        path = os.path.abspath(path)  # noqa: PTH100
        parent = os.path.realpath(os.path.dirname(path))  # noqa: PTH120
        return path == self._place or f"{parent}/".startswith(f"{self._place}/")

    @contextmanager
    def over(self, place: Path) -> Iterator[None]:
        """Watch a block of code, which may write in ``place`` only.

        Raises
        ------
        BrokenContractError
            If it does more, takes too long or needs too much memory.
        """
        self._seen.clear()
        _forget_the_peak()
        self._place = os.path.realpath(place)
        before, alarmed = _peak_bytes(), threading.current_thread() is threading.main_thread()
        if alarmed:
            kept = signal.signal(signal.SIGALRM, _give_up)
            signal.alarm(MOST_SECONDS)
        try:
            yield
        except _Hang as error:
            raise BrokenContractError(f"hangs: {_innermost(error)}") from error
        finally:
            if alarmed:
                signal.alarm(0)
                signal.signal(signal.SIGALRM, kept)
            self._place = None
        if self._seen:
            raise BrokenContractError(f"does what it must not: {self._seen[0]}")
        if (grown := _peak_bytes() - before) > MOST_BYTES:
            raise BrokenContractError(f"takes {grown / 2**30:.1f} GiB of memory")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Look away for what the fuzzing itself does."""
        place, self._place = self._place, None
        try:
            yield
        finally:
            self._place = place


def expect(work: Callable[[], Any], names: Sequence[str]) -> Any:
    """Do something; return what comes of it, or None if one of the project's own errors does, which names what is wrong.

    Raises
    ------
    BrokenContractError
        If there is another error, or one that names none of ``names``, or one for want of memory.
    """
    try:
        return work()
    except HpcdeqError as error:
        _check_memory(error)
        if not any(name in str(error) for name in names):
            raise BrokenContractError(f"names none of {', '.join(names)}: {str(error)[:300]}") from error
        if len(str(error)) > 20_000:
            raise BrokenContractError(
                f"a message of {len(str(error))} characters: {str(error)[:300]}"
            ) from error
        return None
    except Exception as error:
        raise BrokenContractError(
            f"{type(error).__name__} in {_innermost(error)}: {str(error)[:300]}"
        ) from error


def _check_memory(error: BaseException) -> None:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError):
            raise BrokenContractError(f"asks for memory that is not there: {str(error)[:300]}") from error
        seen = seen.__cause__ or seen.__context__


def _for_writing(arguments: tuple[Any, ...]) -> bool:
    mode, flags = arguments[1], arguments[2]
    return (
        bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if mode is None
        else set(mode) & set("wax+") != set()
    )


def _give_up(*_: object) -> None:
    raise _Hang


def _innermost(error: BaseException) -> str:
    """The last line of the package that an error came through, which tells findings apart."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/hpcdeq/" in f.filename] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno} {own[-1].name}"


def _forget_the_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


WATCH = Watch()


def scratch() -> Path:
    """A new folder in memory, where there is one."""
    shm = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="hpcdeq-fuzz-", dir=shm if shm.is_dir() else None))
