"""The versions that are installed for tests are among those that pyproject.toml allows, of every extra and every Python."""

import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(one.name): next(iter(one.specifier)).version for one in pinned}


def test_every_pin_is_allowed_by_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    pinned = pins()
    wrong, checked = [], 0
    for requirement in map(Requirement, asked):
        version = pinned.get(canonicalize_name(requirement.name))
        checked += version is not None
        if version is not None and version not in requirement.specifier:
            wrong.append(f"{requirement}: constraints.txt has {version}")
    assert not wrong
    assert checked > 20


def test_every_pin_is_for_the_oldest_python_too() -> None:
    """Debian 12 has 3.11.2: what asks for a later patch of 3.11 cannot be installed there."""
    wrong, checked = [], 0
    for name, version in pins().items():
        try:
            asks = metadata.metadata(name).get("Requires-Python")
        except metadata.PackageNotFoundError:  # for another platform, or another Python
            continue
        checked += 1
        if asks is not None and "3.11.0" not in SpecifierSet(asks):
            wrong.append(f"{name}=={version} needs Python {asks}")
    assert not wrong
    assert checked > 100
