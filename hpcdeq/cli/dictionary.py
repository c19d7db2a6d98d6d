"""``hpcdeq dictionary``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def dictionary(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="Archive of clean scenes.")],
    out: Annotated[Path, typer.Option(help="File to write (safetensors).")],
    atoms: Annotated[int, typer.Option(help="Number of atoms.")] = 512,
    sparsity: Annotated[int, typer.Option(help="Atoms a spectrum is coded with.")] = 5,
    iterations: Annotated[int, typer.Option(help="K-SVD iterations.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampled spectra and of the first atoms.")] = 0,
) -> None:
    """Learn a dictionary of spectra by K-SVD.

    For training with dictionary=FILE. Started by mpirun, torchrun or srun the processes share the work, and rank 0 writes the
    file that one alone would.
    """
    import os

    import torch

    from hpcdeq.archive import open_archive
    from hpcdeq.cluster.group import process_group
    from hpcdeq.cluster.ranks import place_of
    from hpcdeq.console import result
    from hpcdeq.errors import ConfigError
    from hpcdeq.models import save_dictionary
    from hpcdeq.sparse import KSvdSettings
    from hpcdeq.training.data import learn_from_scenes

    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; name a file, such as {out / 'dictionary.safetensors'}")
    try:
        settings = KSvdSettings(atoms=atoms, sparsity=sparsity, iterations=iterations, seed=seed)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    scenes = open_archive(archive).scenes()
    if not scenes:
        raise ConfigError(f"the archive {archive} holds no scene; ingest some first")
    bands = {scene.shape[0]: scene.name for scene in scenes}
    if len(bands) > 1:
        raise ConfigError(
            f"all scenes of a dictionary must have one band count; found {bands}: split them into archives by sensor"
        )
    with process_group(place_of(os.environ), torch.device("cpu")) as team:
        learnt = learn_from_scenes(scenes, settings, team)
    if team.leads:
        save_dictionary(learnt, out, {"scenes": {scene.name: scene.identities for scene in scenes}})
        result(str(out))
