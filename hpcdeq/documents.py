"""JSON and YAML documents, which anybody may have written: read within bounds, and with one kind of error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

_MOST_JSON_BYTES = 256 << 20  # the plan of a million scenes
_MOST_YAML_BYTES = 128 << 10
_DEEPEST = 50
_BEGINS = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
_ENDS = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
_MOST_LETTERS = 200  # of a value that a message repeats


def read_json(path: Path) -> Any:
    """Read a JSON document.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is none, is nested too deep, or is too large.
    """
    try:
        return json.loads(_text(path, _MOST_JSON_BYTES))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def read_yaml_text(path: Path) -> str:
    """Read the text of a YAML document.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        As `check_yaml`; or if it is too large, or no text.
    """
    return check_yaml(_text(path, _MOST_YAML_BYTES))


def check_yaml(text: str) -> str:
    """Return a YAML text that is safe to parse: a few lines with aliases can stand for more than fits any memory.

    Raises
    ------
    ValueError
        If it has aliases, is nested too deep, or is no YAML.
    """
    depth = 0
    try:
        for token in yaml.scan(text):
            line = token.start_mark.line + 1
            if isinstance(token, yaml.AliasToken):
                raise ValueError(f"line {line} has an alias (*{token.value}); write out what it stands for")
            depth += isinstance(token, _BEGINS) - isinstance(token, _ENDS)
            if depth > _DEEPEST:
                raise ValueError(f"line {line} is nested more than {_DEEPEST} deep")
    except yaml.YAMLError as error:
        raise ValueError(f"it is not YAML: {error}") from error
    return text


def shortened(value: object) -> str:
    """Return a value as messages repeat it: its beginning, if it is long."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}... ({len(text)} characters)"


def _text(path: Path, most: int) -> str:
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most >> 10} KiB")
    return content.decode()
