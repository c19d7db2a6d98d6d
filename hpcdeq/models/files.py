"""Model files: safetensors for numbers, JSON for settings. Nothing pickled is ever read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpcdeq.errors import ModelFileError
from hpcdeq.models.denoiser import ModelSettings, SparseDenoiser

WEIGHTS = "model.safetensors"
CARD = "model.json"
FORMAT = "hpcdeq-model"
VERSION = 1

Identities = dict[str, list[str]]
"""Scenes by name, with what each is known by (`hpcdeq.archive.Scene.identities`)."""


def save_model(model: SparseDenoiser, folder: Path, provenance: dict[str, Any]) -> None:
    """Write ``model.safetensors`` and ``model.json`` into ``folder``, replacing a model that is there in one step.

    Parameters
    ----------
    model
        The model; its numbers are written as float32.
    folder
        Where to put it.
    provenance
        How it came about (data, training settings, metrics), as JSON values.
    """
    for left in folder.parent.glob(f".{folder.name}.*"):  # of killed runs
        shutil.rmtree(left)
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    aside.mkdir(parents=True)
    numbers = {k: v.detach().float().cpu().contiguous() for k, v in sorted(model.state_dict().items())}
    _save_tensors(numbers, aside / WEIGHTS, None)
    card = {
        "format": FORMAT,
        "version": VERSION,
        "bands": model.bands,
        "parameters": model.parameter_count,
        "settings": asdict(model.settings),
        "weights_sha256": _sha256(aside / WEIGHTS),
        "provenance": provenance,
    }
    (aside / CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n")
    old = folder.with_name(f"{aside.name}.old")
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_model(folder: Path | str) -> SparseDenoiser:
    """Read a model, in evaluation mode, on the CPU.

    Raises
    ------
    ModelFileError
        If a file is missing or damaged, or its settings are not those of a model.
    """
    folder = Path(folder)
    settings = _settings(folder, read_card(folder))
    try:
        numbers = load_file(folder / WEIGHTS)
        dictionary = numbers["dictionary"]
        model = SparseDenoiser(settings, dictionary)
        model.load_state_dict(numbers)
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise ModelFileError(
            f"{folder / WEIGHTS} does not hold the weights that {CARD} describes: {error}"
        ) from error
    return model.eval()


def read_card(folder: Path) -> dict[str, Any]:
    """Read ``model.json`` and check that the weights beside it are the ones it describes."""
    for name in (CARD, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelFileError(
                f"no {name} in {folder}; a model is a folder with {WEIGHTS} and {CARD}, as train writes it"
            )
    try:
        card: dict[str, Any] = json.loads((folder / CARD).read_text())
        known = card["format"] == FORMAT and card["version"] == VERSION
        wanted = card["weights_sha256"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ModelFileError(f"{folder / CARD} is not a model card: {error!r}") from error
    if not known:
        raise ModelFileError(
            f"{folder / CARD}: format {card['format']} {card['version']}; this version reads {FORMAT} {VERSION}"
        )
    if _sha256(folder / WEIGHTS) != wanted:
        raise ModelFileError(
            f"{folder / WEIGHTS} is damaged or not the one {CARD} was written for: its sha256 differs"
        )
    return card


def learnt_scenes(provenance: dict[str, Any]) -> Identities:
    """Return the scenes that a model or a dictionary was learnt from; none if its provenance does not say."""
    told = provenance.get("scenes")
    if not isinstance(told, dict):
        return {}
    return {str(name): [str(i) for i in found] for name, found in told.items() if isinstance(found, list)}


def save_dictionary(dictionary: Tensor, path: Path, provenance: dict[str, Any]) -> None:
    """Write D ``(band, atom)`` as one safetensors file, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    _save_tensors({"dictionary": dictionary.detach().float().cpu().contiguous()}, aside, provenance)
    aside.replace(path)


def load_dictionary(path: Path) -> Tensor:
    """Read D ``(band, atom)``.

    Raises
    ------
    ModelFileError
        If the file is missing, or is no dictionary.
    """
    if not path.is_file():
        raise ModelFileError(
            f"no dictionary at {path}; make one with: hpcdeq dictionary ARCHIVE --out {path}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            dictionary: Tensor = file.get_tensor("dictionary")
    except SafetensorError as error:
        raise ModelFileError(f"{path} is not a dictionary written by `hpcdeq dictionary`: {error}") from error
    if dictionary.dim() != 2 or not bool(torch.isfinite(dictionary).all()):
        raise ModelFileError(
            f"{path}: a dictionary is (band, atom) and finite, got shape {tuple(dictionary.shape)}"
        )
    return dictionary


def read_dictionary_card(path: Path) -> dict[str, Any]:
    """Read how a dictionary's file came about."""
    load_dictionary(path)
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get("provenance", "{}")
    try:
        told = json.loads(text)
    except json.JSONDecodeError as error:
        raise ModelFileError(f"{path}: its provenance is not JSON: {error}") from error
    return told if isinstance(told, dict) else {}


def _save_tensors(numbers: dict[str, Tensor], path: Path, provenance: dict[str, Any] | None) -> None:
    save_file(
        numbers,
        path,
        metadata=None if provenance is None else {"provenance": json.dumps(provenance, sort_keys=True)},
    )
    # safetensors writes 0600 whatever the umask: colleagues could not read a published model.
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def _settings(folder: Path, card: dict[str, Any]) -> ModelSettings:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(ModelSettings).validate_python(card.get("settings"))
    except ValidationError as error:
        raise ModelFileError(f"{folder / CARD}: its settings are not those of a model: {error}") from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
