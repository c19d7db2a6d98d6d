"""What is compared: the methods that need no training and the trained models that were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from hpcdeq.archive import Scene
from hpcdeq.archive.splits import check_unseen
from hpcdeq.cluster.device import choose_device
from hpcdeq.errors import ConfigError, suggestion
from hpcdeq.models import learnt_scenes, load_dictionary, read_dictionary_card
from hpcdeq.studies.classical import CODERS, classical
from hpcdeq.studies.method import Method
from hpcdeq.studies.public_tools import public_tools, require
from hpcdeq.studies.trained import ORDER, trained_method


def choose(
    names: Sequence[str] | None,
    models: Sequence[Path],
    dictionary: Path | None,
    scenes: Sequence[Scene],
    device: str,
) -> list[Method]:
    """Return the methods to compare, in the order of the paper's tables.

    Parameters
    ----------
    names
        Keys of those that need no training; None takes all that the paper names.
    models
        Folders of trained models, which are rows too.
    dictionary
        A dictionary's file for the classical methods; None takes that of the first model.
    scenes
        What they are to be tested on.
    device
        ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    ConfigError
        If a name is unknown, a dictionary is needed and none is given, two models are the same row for the same noise, or one was
        trained on a scene that it would be tested on.
    """
    on = choose_device(device)
    trained = [trained_method(folder, scenes, device) for folder in models]
    atoms = _dictionary(dictionary, trained, scenes)
    known = {method.key: method for method in [*classical(atoms, on), *public_tools()]}
    asked = [key for key, m in known.items() if m.tables != {0}] if names is None else list(names)
    for name in asked:
        if name not in known:
            raise ConfigError(f"--methods: there is no {name!r}; {suggestion(name, known)}")
    if needing := [key for key in asked if key in CODERS and atoms is None]:
        raise ConfigError(
            f"{', '.join(needing)} need a dictionary: give --dictionary FILE (from `hpcdeq dictionary`), or a --model, "
            "which holds one; or name other methods with --methods"
        )
    for name in asked:
        require(name)
    _check_distinct(trained)
    return [known[key] for key in known if key in asked] + sorted(trained, key=_order)


def for_sigma(methods: Sequence[Method], sigma: float) -> list[Method]:
    """Of models that are the same row keep the one that was trained nearest to a noise level."""
    best: dict[str, Method] = {}
    for method in methods:
        other = best.get(method.title)
        if other is None or _distance(method, sigma) < _distance(other, sigma):
            best[method.title] = method
    return list(best.values())


def _distance(method: Method, sigma: float) -> tuple[float, float]:
    """How far a level is from what a model was trained at; among those that include it, the narrowest is nearest."""
    if method.sigmas is None:
        return 0.0, 0.0
    least, largest = method.sigmas
    return max(least - sigma, sigma - largest, 0.0), largest - least


def _dictionary(path: Path | None, trained: Sequence[Method], scenes: Sequence[Scene]) -> Tensor | None:
    if path is not None:
        check_unseen(scenes, learnt_scenes(read_dictionary_card(path)), f"the dictionary {path}")
        return load_dictionary(path)
    first = trained[0].model if trained else None
    return None if first is None else first.atoms.detach()


def _check_distinct(trained: Sequence[Method]) -> None:
    seen: dict[tuple[str, tuple[float, float] | None], Method] = {}
    for method in trained:
        if seen.setdefault((method.title, method.sigmas), method) is not method:
            raise ConfigError(
                f"--model: two models are the row {method.title} for the same noise; give one of them"
            )


def _order(method: Method) -> tuple[int, str]:
    return (ORDER.index(method.title) if method.title in ORDER else len(ORDER), method.title)
