"""Look at this machine: what hpcdeq needs, what it can use, and what to do about the rest.

Every check tries the thing itself where it can: an MPI that is installed but cannot be loaded is worse than
none.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from hpcdeq import __version__
from hpcdeq.cluster.ranks import Place, place_of

NETWORK_FILESYSTEMS = frozenset(
    {
        "nfs",
        "nfs4",
        "lustre",
        "gpfs",
        "beegfs",
        "cifs",
        "smb3",
        "ceph",
        "panfs",
        "wekafs",
        "orangefs",
        "afs",
        "9p",
    }
    | {"fuse.ceph", "fuse.sshfs", "fuse.glusterfs"}
)
CORE = {
    "numpy": "numpy",
    "zarr": "zarr",
    "dask": "dask.array",
    "xarray": "xarray",
    "google-crc32c": "google_crc32c",
}
EXTRAS = {
    "geo": ("rasterio", "h5netcdf"),
    "report": ("matplotlib", "jinja2"),
    "scale": ("simpy", "pynvml"),
    "track": ("tensorboard",),
    "slurm": ("submitit",),
}
ANSWER_SECONDS = 5.0
MEETING_SECONDS = 60.0
IMPORT_SECONDS = 60.0  # deepspeed on a cold network file system
# Loading the library does not start MPI: a probe on a login node must not.
_LOAD_MPI = (
    "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; "
    "print(MPI.Get_library_version().split(',')[0])"
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "missing", "broken"]
    detail: str
    advice: str = ""
    """What to install or do; empty if nothing."""
    core: bool = False
    """Whether hpcdeq cannot work without it."""


def probe() -> Iterator[Finding]:
    """Look at everything, one finding after the other."""
    yield _python()
    yield Finding("hpcdeq", "ok", f"{__version__} in {Path(__file__).parents[1]}", core=True)
    yield from _torch()
    for package, module in CORE.items():
        yield _library(module, package)
    for extra, modules in EXTRAS.items():
        for module in modules:
            yield _library(module, module, extra)
    yield _apart("deepspeed", "deepspeed", "import deepspeed; print(deepspeed.__version__)")
    yield _apart("mpi4py", "mpi", _LOAD_MPI)
    yield from _slurm()
    yield _processes()
    yield _folder("current folder", Path.cwd(), core=False)
    yield _folder("temporary folder", Path(tempfile.gettempdir()), core=True)


def _python() -> Finding:
    cores = len(os.sched_getaffinity(0))
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {cores} cores"
    return Finding("python", "ok", detail, core=True)


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:
        yield Finding("torch", "broken", _first_line(error), "pip install --force-reinstall torch", core=True)
        return
    yield Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads", core=True)
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        names = "; ".join(f"{d.name}, {d.total_memory / 2**30:.0f} GiB" for d in devices)
        bf16 = "with" if torch.cuda.is_bf16_supported() else "without"
        yield Finding(
            "cuda", "ok", f"{len(devices)} device(s): {names}; {bf16} bf16; CUDA {torch.version.cuda}"
        )
    elif not Path("/dev/nvidia0").exists():
        yield Finding("cuda", "missing", "no NVIDIA GPU on this machine; the CPU is used")
    elif torch.version.cuda is None:
        advice = "install a CUDA build: pip uninstall torch, then pip install torch without a CPU-only index"
        yield Finding("cuda", "broken", "there is a GPU, but this torch was built for the CPU only", advice)
    else:
        advice = f"run nvidia-smi; the driver must be recent enough for CUDA {torch.version.cuda}"
        yield Finding("cuda", "broken", "there is a GPU, but torch cannot use it", advice)


def _library(module: str, package: str, extra: str | None = None) -> Finding:
    """Import a library for real; one of an extra may be missing, one of the core may not."""
    core = extra is None
    install = f'pip install "hpcdeq[{extra}]"' if extra else f"pip install {package}"
    try:
        installed = version(package)
    except PackageNotFoundError:
        return Finding(package, "broken" if core else "missing", "not installed", install, core)
    try:
        importlib.import_module(module)
    except Exception as error:
        advice = f"pip install --force-reinstall {package}"
        return Finding(package, "broken", f"{installed}, but: {_first_line(error)}", advice, core)
    return Finding(package, "ok", installed, core=core)


def _apart(package: str, extra: str, code: str) -> Finding:
    """Try a library in a process of its own: these can hang, print, or take the process down."""
    try:
        installed = version(package)
    except PackageNotFoundError:
        return Finding(package, "missing", "not installed", f'pip install "hpcdeq[{extra}]"')
    answer = _ask([sys.executable, "-c", code], IMPORT_SECONDS)
    if answer.failed:
        what = (
            "an MPI library (apt-get install libopenmpi3, or your cluster's module)"
            if extra == "mpi"
            else "it again"
        )
        return Finding(package, "broken", f"{installed}, but: {answer.text}", f"install {what}")
    return Finding(package, "ok", installed if answer.text == installed else f"{installed}, {answer.text}")


def _slurm() -> Iterator[Finding]:
    for tool in ("srun", "sbatch"):
        if shutil.which(tool) is None:
            yield Finding(
                tool,
                "missing",
                "not on PATH; needed only to submit to SLURM",
                "run on a login node, or load its module",
            )
            continue
        answer = _ask([tool, "--version"], ANSWER_SECONDS)
        if answer.failed:
            yield Finding(
                tool, "broken", answer.text, "SLURM is installed but not configured here; use a login node"
            )
        else:
            yield Finding(tool, "ok", answer.text)
    if shutil.which("scontrol") is not None:
        answer = _ask(["scontrol", "ping"], ANSWER_SECONDS)
        up = not answer.failed and " UP" in answer.text
        advice = "" if up else "the SLURM controller does not answer; ask the administrators"
        yield Finding("slurm controller", "ok" if up else "broken", answer.text, advice)


def _processes() -> Finding:
    """Find the processes that were started together with this one, and add up their ranks: all must have met."""
    try:
        place = place_of(os.environ)
        if place.world_size == 1:
            return Finding(
                "processes", "ok", "one; started by torchrun, srun or mpirun this looks for the others"
            )
        total = _sum_of_ranks(place)
    except Exception as error:
        advice = "see what is said; all processes must have started, on hosts that reach each other"
        return Finding("processes", "broken", _first_line(error), advice, core=True)
    size = place.world_size
    state: Literal["ok", "broken"] = "ok" if total == size * (size - 1) // 2 else "broken"
    return Finding("processes", state, f"{size}, started by {place.launcher}; all met", core=True)


def _sum_of_ranks(place: Place) -> int:
    import torch

    from hpcdeq.cluster.group import process_group

    cuda = torch.cuda.is_available()
    device = (
        torch.device("cuda", place.local_rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
    )
    with process_group(place, device, MEETING_SECONDS):
        rank = torch.tensor(place.rank, device=device)
        torch.distributed.all_reduce(rank)
        return int(rank.item())


def _folder(name: str, path: Path, core: bool) -> Finding:
    where = f"{path}, {shutil.disk_usage(path).free / 2**30:.1f} GiB free, {_filesystem(path)}"
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"x")
    except OSError as error:
        advice = "set TMPDIR to a folder you can write to" if core else "change to a folder you can write to"
        return Finding(name, "broken", f"{where}; cannot write: {error.strerror}", advice, core)
    return Finding(name, "ok", where, core=core)


def _filesystem(path: Path) -> str:
    """Type of the file system that holds ``path``, and whether other machines may see it."""
    best, kind = Path("/"), "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, tail = line.partition(" - ")
        mount = Path(fields.split()[4].replace("\\040", " "))
        if path.resolve().is_relative_to(mount) and len(mount.parts) >= len(best.parts):
            best, kind = mount, tail.split()[0]
    return f"{kind} ({'network' if kind in NETWORK_FILESYSTEMS else 'local'})"


@dataclass(frozen=True)
class _Answer:
    text: str
    failed: bool


def _ask(command: list[str], seconds: float) -> _Answer:
    """Run a command; its last line, or why there is none."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        return _Answer(f"no answer within {seconds:.0f} s", True)
    except OSError as error:
        return _Answer(str(error.strerror), True)
    lines = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip().splitlines()
    if done.returncode < 0:
        return _Answer(f"killed by signal {-done.returncode}", True)
    return _Answer(lines[-1].strip()[:200] if lines else f"exit code {done.returncode}", done.returncode != 0)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
