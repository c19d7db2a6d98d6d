"""Model files: safetensors for numbers, JSON for settings. Nothing pickled is ever read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpcdeq.documents import read_json, shortened
from hpcdeq.errors import ModelFileError
from hpcdeq.models.denoiser import ModelSettings, SparseDenoiser
from hpcdeq.weights import find, names

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

    Parameters
    ----------
    folder
        A model's folder; or the name of one that comes with the package (`hpcdeq.weights.names`).

    Raises
    ------
    ModelFileError
        If a file is missing or damaged, or its settings are not those of a model.
    """
    folder = find(Path(folder))
    settings = read_settings(folder)
    try:
        numbers = load_file(folder / WEIGHTS)
        dictionary = numbers["dictionary"]
        _check_fit(settings, numbers)
        model = SparseDenoiser(settings, dictionary)
        model.load_state_dict(numbers)
    except Exception as error:  # torch raises whatever it likes at settings and numbers that do not fit
        raise ModelFileError(
            f"{folder / WEIGHTS} does not hold the weights that {CARD} describes: {shortened(str(error))}"
        ) from error
    return model.eval()


def _check_fit(settings: ModelSettings, numbers: dict[str, Tensor]) -> None:
    """Raise a ValueError unless a model of these settings has these numbers, before anything is allocated by what they claim."""
    with torch.device("meta"):
        wanted = SparseDenoiser(settings, numbers["dictionary"].to("meta")).state_dict()
    for name in sorted(wanted.keys() | numbers.keys()):
        there, meant = numbers.get(name), wanted.get(name)
        if there is None or meant is None or there.shape != meant.shape:
            shapes = ["none" if t is None else str(tuple(t.shape)) for t in (there, meant)]
            raise ValueError(f"{name} has shape {shapes[0]}, the settings ask for {shapes[1]}")
        if not there.is_floating_point() or not bool(torch.isfinite(there).all()):
            raise ValueError(f"{name} holds what is no finite number")


def read_settings(folder: Path) -> ModelSettings:
    """Read the settings of a model from its card.

    Raises
    ------
    ModelFileError
        As `load_model`.
    """
    folder = find(folder)
    try:
        return _settings_of().validate_python(read_card(folder)["settings"])
    except ValidationError as error:
        raise ModelFileError(
            f"{folder / CARD}: its settings are not those of a model: {shortened(str(error))}"
        ) from error


@cache
def _settings_of() -> TypeAdapter[ModelSettings]:
    return TypeAdapter(ModelSettings)


def read_card(folder: Path) -> dict[str, Any]:
    """Read ``model.json`` and check that the weights beside it are the ones it describes."""
    folder = find(folder)
    for name in (CARD, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelFileError(f"no {name} in {folder}; {_meant(folder)}")
    try:
        card: dict[str, Any] = read_json(folder / CARD)
        format_, version, wanted = card["format"], card["version"], card["weights_sha256"]
        settings, provenance = card["settings"], card["provenance"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{folder / CARD} is not a model card: {shortened(repr(error))}") from error
    if (format_, version) != (FORMAT, VERSION):
        newer = format_ == FORMAT and isinstance(version, int) and version > VERSION
        advice = "update hpcdeq" if newer else "export or train it again with this version"
        raise ModelFileError(
            f"{folder / CARD}: format {shortened(format_)} {shortened(version)}; this version reads {FORMAT} {VERSION}: {advice}"
        )
    if not isinstance(settings, dict) or not isinstance(provenance, dict):
        raise ModelFileError(f"{folder / CARD} is not a model card: settings and provenance must be objects")
    if _sha256(folder / WEIGHTS) != wanted:
        raise ModelFileError(
            f"{folder / WEIGHTS} is damaged or not the one {CARD} was written for: its sha256 differs"
        )
    return card


def _meant(folder: Path) -> str:
    """Say what to give in place of a folder that is no model."""
    if (folder / "model" / CARD).is_file():
        return f"it is the folder of a run, whose model is {folder / 'model'}"
    return (
        f"a model is a folder with {WEIGHTS} and {CARD}, as train writes it, "
        f"or one that comes along: {', '.join(names())}"
    )


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
        finite = dictionary.is_floating_point() and bool(torch.isfinite(dictionary).all())
    except Exception as error:  # torch knows not all types that a file can name
        raise ModelFileError(
            f"{path} is not a dictionary written by `hpcdeq dictionary`: {shortened(str(error))}"
        ) from error
    if dictionary.dim() != 2 or 0 in dictionary.shape or not finite:
        raise ModelFileError(
            f"{path}: a dictionary is (band, atom) and finite, got shape {tuple(dictionary.shape)} of {dictionary.dtype}"
        )
    return dictionary


def read_dictionary_card(path: Path) -> dict[str, Any]:
    """Read how a dictionary's file came about."""
    load_dictionary(path)
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get("provenance", "{}")
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: its provenance is not JSON: {shortened(str(error))}") from error
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


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
