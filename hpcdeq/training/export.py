"""Model files from checkpoints, of runs that are finished, running or dead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hpcdeq import __version__
from hpcdeq.archive import open_archive
from hpcdeq.config import TrainConfig, load_train_config
from hpcdeq.errors import ConfigError, HpcdeqError
from hpcdeq.models import Identities, SparseDenoiser, read_card, save_model
from hpcdeq.training import checkpoints


def export_checkpoint(run: Path, out: Path, checkpoint: str | None = None) -> str:
    """Write the model of a checkpoint of a run.

    Parameters
    ----------
    run
        Folder of the run.
    out
        Folder of the model file to write.
    checkpoint
        Name of the checkpoint; None takes the best on the validation blocks so far.

    Returns
    -------
    str
        Name of the checkpoint.

    Raises
    ------
    ConfigError
        If there is no such run or checkpoint.
    TrainingError
        If the checkpoint is damaged.
    """
    resolved = run / "config.yaml"
    if not resolved.is_file():
        raise ConfigError(f"{run} is not the folder of a run: it has no config.yaml, which train writes")
    folder = run / "checkpoints"
    names = [path.name for path in checkpoints.committed(folder)]
    if not names:
        raise ConfigError(f"{run} has no checkpoint yet; train writes the first one when its training begins")
    name = checkpoint or str(checkpoints.load(folder / names[-1])["position"]["best"] or names[-1])
    if name not in names:
        raise ConfigError(f"{run} has no checkpoint {name!r}; there are: {', '.join(names)}")
    config = load_train_config(resolved, [])
    state = checkpoints.load(folder / name)
    model = SparseDenoiser(config.model, state["model"]["dictionary"])
    model.load_state_dict(state["model"])
    save_model(model.eval(), out, provenance(config, name, state["scenes"], state["position"]))
    return name


def provenance(
    config: TrainConfig, checkpoint: str | None, scenes: Identities, position: dict[str, Any]
) -> dict[str, Any]:
    """Return how a model came about, and how the one did that it began with."""
    best, begun = position["best"], config.training.start_from
    return {
        "hpcdeq": __version__,
        "torch": torch.__version__,
        "config": config.model_dump(mode="json", exclude={"run"}),
        "before": None if begun is None else read_card(begun)["provenance"],
        "scenes": scenes,
        "wavelengths": _wavelengths(config),
        "checkpoint": checkpoint,
        "validation_psnr": position["best_psnr"] if checkpoint is not None and checkpoint == best else None,
        "skipped_steps": position["skipped"],
        "rollbacks": position["rollbacks"],
    }


def _wavelengths(config: TrainConfig) -> list[float] | None:
    """Band centres in nm of the first scene to learn from; None if it tells none, or is not here any more."""
    try:
        archive = open_archive(config.data.train)
        found = archive[min(archive)].wavelengths
    except (HpcdeqError, ValueError):  # min: of no scenes
        return None
    return None if found is None else found.tolist()
