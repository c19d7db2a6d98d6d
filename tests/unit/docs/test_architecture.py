"""What docs/architecture.md draws of the rooms is what import-linter checks."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]


def rooms_by_layer() -> list[list[str]]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[room.strip().removeprefix("hpcdeq.") for room in layer.split("|")] for layer in layers]


def test_the_picture_shows_the_layers_from_the_top() -> None:
    (drawing,) = re.findall(r"```mermaid\n(.*?)```", (ROOT / "docs/architecture.md").read_text(), re.DOTALL)
    nodes = dict(re.findall(r'^ *(\w+)\["(.*?)"\]$', drawing, re.MULTILINE))
    assert [names.split(", ") for names in nodes.values()] == rooms_by_layer()
    assert re.findall(r"(\w+) --> (\w+)", drawing) == list(zip(nodes, list(nodes)[1:], strict=False))


def test_the_table_names_all_rooms_and_no_others() -> None:
    table = re.findall(r"^\| (`.*?`[^|]*) \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    named = {name.rstrip("/").removesuffix(".py") for row in table for name in re.findall(r"`(.*?)`", row)}
    assert named == {room for layer in rooms_by_layer() for room in layer}
