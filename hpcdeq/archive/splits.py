"""Split files: which scenes are learnt from, validated on and tested on, known by their content, so that none leaks."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from hpcdeq.archive.layout import check_name
from hpcdeq.archive.scene import Scene
from hpcdeq.archive.store import Archive
from hpcdeq.documents import read_json, shortened
from hpcdeq.errors import ConfigError
from hpcdeq.noise import stable_hash

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")
FORMAT = "hpcdeq-split"
VERSION = 1


@dataclass(frozen=True)
class Split:
    """Scenes in three parts that have none in common.

    Raises
    ------
    ConfigError
        If a scene is in two parts, under whatever name: it has the pixels, or the raw file, of another.
    """

    parts: Mapping[Part, Mapping[str, tuple[str, ...]]]
    """For each part the scenes by name, with their `hpcdeq.archive.Scene.identities`."""

    def __post_init__(self) -> None:
        leaks = [
            f"{name} of {one} is {self._named(other, identity)} of {other}"
            for one, other in combinations(self.parts, 2)
            for name, identities in self.parts[one].items()
            if (identity := next((i for i in identities if self._named(other, i)), None))
        ]
        if leaks:
            raise ConfigError(
                f"{len(leaks)} scenes are in two parts of the split, so that what is tested was learnt: "
                f"{'; '.join(leaks[:10])}; leave each in one part"
            )

    def names(self, archive: Archive, part: Part) -> list[str]:
        """Return the scenes of a part, all of which are in the archive and can be opened."""
        return [scene.name for scene in self.take(archive, part)]

    def take(self, archive: Archive, part: Part) -> list[Scene]:
        """Open the scenes of a part.

        Raises
        ------
        ConfigError
            If the part is empty, or a scene is not in the archive, or is another one of the same name.
        """
        wanted = self.parts.get(part, {})
        if not wanted:
            raise ConfigError(f"the split has no scenes to {_PURPOSE[part]} (part {part!r})")
        if missing := [name for name in wanted if name not in archive]:
            raise ConfigError(
                f"{len(missing)} scenes of the split's part {part!r} are not in {archive.path}: {', '.join(missing[:10])}"
            )
        scenes = [archive[name] for name in wanted]
        if other := [s.name for s in scenes if not set(s.identities) & set(wanted[s.name])]:
            raise ConfigError(
                f"{len(other)} scenes in {archive.path} are not those that the split was made of, though of the same name: "
                f"{', '.join(other[:10])}"
            )
        return scenes

    def _named(self, part: Part, identity: str) -> str | None:
        return next((name for name, found in self.parts[part].items() if identity in found), None)


_PURPOSE = {"train": "learn from", "val": "validate on", "test": "test on"}


def check_unseen(scenes: Sequence[Scene], learnt: Mapping[str, Sequence[str]], what: str) -> None:
    """Refuse to test what was learnt from the same scenes, whatever their names are.

    Parameters
    ----------
    scenes
        What it is to be tested on.
    learnt
        The scenes it was learnt from, by name, with their identities.
    what
        A model, or a dictionary.

    Raises
    ------
    ConfigError
        If some of the scenes are among those.
    """
    seen = {identity: name for name, identities in learnt.items() for identity in identities}
    leaks = [
        f"{scene.name} (as {seen[known[0]]})"
        for scene in scenes
        if (known := [i for i in scene.identities if i in seen])
    ]
    if leaks:
        raise ConfigError(
            f"{what} was learnt from {len(leaks)} of the {len(scenes)} scenes that it would be tested on: {', '.join(leaks[:10])}; "
            "test it on others, see `hpcdeq split`"
        )


def split_scenes(scenes: Sequence[Scene], val: int, test: int, seed: int) -> Split:
    """Draw a split: the scenes of one raw file stay together.

    Parameters
    ----------
    scenes
        All scenes.
    val, test
        How many to validate and to test on; the rest is learnt from. Drawn by a hash of seed and name: it does not depend on
        which other scenes there are in what order.
    seed
        Which split.

    Raises
    ------
    ConfigError
        If no scene is left to learn from, or scenes of one raw file do not fit into a part.
    """
    if val < 0 or test < 0 or val + test >= len(scenes):
        raise ConfigError(
            f"of {len(scenes)} scenes {val} to validate and {test} to test on leave none to learn from; take fewer"
        )
    drawn = sorted(scenes, key=lambda scene: (stable_hash(f"{seed}/{scene.name}"), scene.name))
    return split_of({"test": drawn[:test], "val": drawn[test : test + val], "train": drawn[test + val :]})


def split_of(parts: Mapping[Part, Sequence[Scene]]) -> Split:
    """Return the split of these parts."""
    return Split({part: {s.name: s.identities for s in parts.get(part, ())} for part in PARTS})


def write_split(split: Split, path: Path) -> None:
    """Write a split as JSON, in one step."""
    content = {"format": FORMAT, "version": VERSION, "parts": split.parts}
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    aside.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    aside.replace(path)


def read_split(path: Path) -> Split:
    """Read a split.

    Raises
    ------
    ConfigError
        If the file is missing, is none, or has a scene in two parts.
    """
    try:
        content: Any = read_json(path)
        if content["format"] != FORMAT or content["version"] != VERSION:
            raise ConfigError(
                f"{path}: format {shortened(content['format'])} {shortened(content['version'])}; "
                f"this version reads {FORMAT} {VERSION}"
            )
        parts: dict[Part, dict[str, tuple[str, ...]]] = {
            part: {
                str(name): tuple(map(str, found)) for name, found in content["parts"].get(part, {}).items()
            }
            for part in PARTS
        }
        for name in (name for scenes in parts.values() for name in scenes):
            check_name(name)
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"cannot read the split file {path}: {shortened(repr(error))}; `hpcdeq split` makes one"
        ) from error
    return Split(parts)
