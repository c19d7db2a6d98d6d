"""Denoise an archive into another: planned once, unit by unit, each recorded when it is written, each scene visible when complete.

Any number of workers do it together without talking to each other: each computes its share of the plan, which lies in the ledger.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from hpcdeq.archive import Archive, open_archive
from hpcdeq.archive.scene import checksum_of
from hpcdeq.cluster.device import choose_device
from hpcdeq.cluster.signals import stop_requests
from hpcdeq.console import say
from hpcdeq.errors import ConfigError, HpcdeqError
from hpcdeq.inference.applied import AppliedModel, DenoiseSettings
from hpcdeq.inference.ledger import Job, Ledger
from hpcdeq.inference.plan import ScenePlan, plan_of, share_of
from hpcdeq.inference.worker import DenoiseReport, Worker

_ROOT = "."  # what `verify` calls the archive itself, among its scenes


def denoise_archive(
    archive: Archive, model_folder: Path, out: Path, settings: DenoiseSettings, *, overwrite: bool = False
) -> DenoiseReport:
    """Denoise every scene of an archive.

    A run that was killed goes on where it stood when it is started again; it loses the units in flight.

    Parameters
    ----------
    archive
        Scenes to denoise.
    model_folder
        Model to use.
    out
        Archive to write; made if there is none.
    settings
        How to apply the model.
    overwrite
        Denoise also scenes that are there already.

    Raises
    ------
    ConfigError
        If ``out`` is the input archive, the settings do not fit the model, or this machine has no such device.
    StorageError
        If ``out`` cannot be written, as the disk is full.
    PreemptedError
        If a signal asked to stop (SIGUSR1, SIGUSR2, SIGTERM): when the units that are computed are written.
    """
    choose_device(settings.device)  # before anything is overwritten
    failed = plan_archive(archive, model_folder, out, settings, overwrite=overwrite)
    report = denoise_share(out)
    report.failed = failed | report.failed
    return report


def plan_archive(
    archive: Archive,
    model_folder: Path,
    out: Path,
    settings: DenoiseSettings,
    *,
    overwrite: bool = False,
    names: Collection[str] | None = None,
) -> dict[str, str]:
    """Plan how an archive is denoised, and write the plan into the ledger, for any number of workers.

    What was begun by another plan and is not part of this one is swept. Parameters and errors are those of `denoise_archive`.
    ``names`` are the scenes to denoise; None is all.

    Returns
    -------
    dict
        Scenes that cannot be denoised, and why.
    """
    if out.resolve() == archive.path.resolve():
        raise ConfigError(f"--out {out} is the archive that is read; choose another folder")
    applied = AppliedModel.of(model_folder, settings)
    settings.overlap_of(applied.model)
    if settings.codes and applied.model.code_count == 0:
        raise ConfigError(
            f"--codes: {model_folder} is a prior alone and has no codes; use a fast or full model"
        )
    plans, failed = [], {}
    for name in archive if names is None else names:
        try:
            plans.append(plan_of(archive[name], applied))
        except HpcdeqError as error:
            failed[name] = str(error)
            say(f"{name}: {error}")
    denoised = open_archive(out, create=True)
    ledger = Ledger(denoised)
    there: list[ScenePlan] = []
    left: list[ScenePlan] = []
    for plan in plans:
        found = denoised.fingerprint(plan.name)
        if overwrite:
            ledger.forget(plan)
            denoised.remove(plan.name)
        elif found not in (None, plan.fingerprint):
            say(f"{plan.name}: denoised before with another model, settings or input; denoising it again")
        (there if found == plan.fingerprint and not overwrite else left).append(plan)
    plans = there + left
    denoised.sweep({denoised.shared_path(plan.name, plan.fingerprint) for plan in plans})
    ledger.begin(Job(archive.path, model_folder, settings, plans, len(there)))
    for name, reason in failed.items():
        ledger.fail(name, reason)
    denoised.close()
    return failed


def denoise_share(out: Path, worker: int = 0, workers: int = 1, local_rank: int = 0) -> DenoiseReport:
    """Denoise a worker's share of what was planned for an output archive.

    Parameters
    ----------
    out
        Archive to write; `plan_archive` has been there.
    worker, workers
        Which of how many workers this is, from 0.
    local_rank
        Which of its node, from 0: the workers of a node take its GPUs in turn.

    Raises
    ------
    ConfigError
        If there is no plan, or the model is not that of the plan.
    StorageError, PreemptedError
        As `denoise_archive`.
    """
    run = Worker(out, local_rank)
    with stop_requests() as stop:
        parts = run.job.scenes[: run.job.there], run.job.scenes[run.job.there :]
        run.denoise([unit for part in parts for unit in share_of(part, worker, workers)], stop)
    return run.report


def repair_archive(out: Path) -> tuple[dict[str, list[str]], DenoiseReport]:
    """Denoise again what is damaged or missing in an output archive, and nothing else.

    A damaged scene is taken out of the archive until it is whole again.

    Parameters
    ----------
    out
        The output archive.

    Returns
    -------
    tuple
        What was damaged: files by scene, as `verify` finds them; and what the run did.

    Raises
    ------
    ConfigError
        If there is no ledger beside the archive.
    """
    damaged, archive = dict(verify(out)), Archive(out)
    if not archive.has_root():
        archive.make_root()
    run = Worker(out)
    plans = {plan.name: plan for plan in run.job.scenes}
    for name, files in damaged.items():
        if name == _ROOT:
            continue
        if name not in plans:
            run.report.failed[name] = (
                "of another input than the last one; denoise that again, with --overwrite"
            )
        elif plans[name].fingerprint == _made_by(archive, run.ledger, name):
            run.reopen(plans[name], files)  # else of an older plan: replaced by the scene of this one
    with stop_requests() as stop:
        run.denoise(share_of(run.job.scenes, 0, 1), stop)
    return damaged, run.report


def verify(out: Path) -> Iterator[tuple[str, list[str]]]:
    """Read back every file of every scene that was completed, against its checksum.

    Yields
    ------
    name, files
        For each scene that is not as it was written: the files that are missing or have other bytes. None if the ledger does
        not know what was written. The archive's own metadata are those of the name ``.``.

    Raises
    ------
    ConfigError
        If there is no ledger beside the archive.
    """
    archive = Archive(out)
    ledger = Ledger(archive)
    ledger.job()
    if not archive.has_root():
        yield _ROOT, ["zarr.json"]
    known = set()
    for name, complete in ledger.all_completed():
        known.add(name)
        bad = [file for file, sum_ in complete.checksums.items() if _checksum(out / name / file) != sum_]
        if bad:
            yield name, bad
    for name in archive.names() if out.is_dir() else ():
        if name not in known and archive.fingerprint(name) is not None:
            yield name, []


def _made_by(archive: Archive, ledger: Ledger, name: str) -> str | None:
    """Fingerprint of the plan that made a scene, which may be too damaged to tell itself."""
    told = ledger.completed(name)
    return archive.fingerprint(name) or (told.fingerprint if told else None)


def _checksum(file: Path) -> int | None:
    try:
        return checksum_of(file)
    except OSError:
        return None
