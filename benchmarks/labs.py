"""Work on several SLURM labs at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from tests.slurm.lab import Lab


def on_labs(
    count: int, nodes: int, folder: Path, work: Callable[[Lab, str, Callable[[], bool]], None]
) -> bool:
    """Start labs in a folder, and work on each in a thread of its own, until all have come to their ends.

    Parameters
    ----------
    count, nodes
        How many labs, of how many nodes each.
    folder
        Holds the labs.
    work
        Called with a lab, its name, and what says whether to go on: after Ctrl-C, or an error in another thread, no more.

    Returns
    -------
    bool
        Whether they came to their ends by themselves.
    """
    broken: list[BaseException] = []  # what ends it before its time

    def one(name: str) -> None:
        lab = Lab(folder / name)
        try:
            lab.up(nodes)
            work(lab, name, lambda: not broken)
        except BaseException as error:
            broken.append(error)
            raise
        finally:
            lab.down()

    threads = [threading.Thread(target=one, args=(f"lab{i}",)) for i in range(count)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt as error:
        broken.append(error)
        print("ends after the runs that are at work", flush=True)
        for thread in threads:
            thread.join()
    return not broken
