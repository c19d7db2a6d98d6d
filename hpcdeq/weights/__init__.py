"""Trained models that come with the package, each a folder of its name beside this file."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the names of all models here."""
    return sorted(card.parent.name for card in _FOLDER.glob("*/model.json"))


def find(model: Path) -> Path:
    """Return the folder of the model here that is called so, or else the path itself: a folder of that name comes first."""
    return _FOLDER / model if str(model) in names() and not model.exists() else model


def wavelengths_of(folder: Path) -> list[float] | None:
    """Return the band centres in nm of the scenes that a model here was trained on, all of CAVE; None of another folder."""
    return [400.0 + 10.0 * band for band in range(31)] if folder.parent == _FOLDER else None
