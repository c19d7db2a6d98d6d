"""Command lines of the documentation: real verbs, real options, and settings that are valid."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml

from hpcdeq.cli import app
from hpcdeq.cluster.request import job_request
from hpcdeq.config import TrainConfig, load_train_config
from hpcdeq.errors import ConfigError
from hpcdeq.studies.ablation import read_study
from tests.docs.pages import PAGES, ROOT, joined, tracked

# Kinds that the reader adds; tests/docs/test_extending.py runs what stands there.
EXTENDING = "docs/extending.md"
# Results of an older recipe: the page says what its commands need today.
OLDER = ("docs/results.md", "noise.sigma_range=null model.prior.noise_map=false training.schedule=constant")
# Settings that are valid beside these only, as the prose around them says.
BESIDE = {"model.identity=paper": ["model.b=1"]}
# typer has its own copy of click; of its errors this one is public.
UsageError = typer.BadParameter.__bases__[0]
SECTIONS = "data|noise|dictionary|model|training"


class Line(NamedTuple):
    """A line that could hold a command."""

    where: str
    text: str
    whole: bool
    """Whether it is something to type, and not a verb that a sentence names."""


def lines() -> Iterator[Line]:
    for page in PAGES:
        for block in page.blocks:
            if block.language in ("", "sh", "bash"):
                variables = dict(re.findall(r'^(\w+)="([^"]*)"', block.text, re.MULTILINE))
                for text in joined(block.text):
                    for name, value in variables.items():
                        text = re.sub(rf"\${name}\b", lambda _, v=value: re.sub(r"[\s\\]+", " ", v), text)
                    yield Line(page.name, text, True)
        for span in page.spans:
            yield Line(page.name, span, False)
    for path in tracked("configs/*.yaml", "slurm/*.yaml", "slurm/*.sbatch", "launch/*.sh"):
        for text in joined(path.read_text()):
            where = str(path.relative_to(ROOT))
            if path.suffix == ".yaml" and text.startswith("#"):
                yield Line(where, text.removeprefix("#"), False)
            elif not text.startswith("#"):
                yield Line(where, text, True)


class Command(NamedTuple):
    """A command line of hpcdeq."""

    where: str
    text: str
    whole: bool
    words: list[str]


def commands() -> Iterator[Command]:
    for where, text, whole in lines():
        text = re.sub(r"\s#\s.*", "", text)
        for match in re.finditer(
            r"(?:^|[\s(;|&])(?:\.venv/bin/)?hpcdeq ((?:[a-z]|-h|--help)[^;|&<>]*)", text
        ):
            usage = re.sub(r"\[((?:--|KEY=|SCENE)[^\]]*)\](?:\.\.\.)?", r"\1", match[1]).strip(" `)")
            if usage.startswith(
                ("ok ", "from ", "import ", "with ", "is ", "and ")
            ):  # output, or prose in a script
                continue
            yield Command(where, text.strip(), whole and "..." not in usage, shlex.split(usage))


COMMANDS = list(commands())


def parse(words: list[str], whole: bool) -> tuple[list[str], dict[str, Any]]:
    """Return the verb and its parameters, without running anything.

    Raises
    ------
    UsageError
        If there is no such verb or option, or a value is not of its kind.
    """
    command: Any = typer.main.get_command(app)
    verb: list[str] = []
    words = [
        "1" if word in ("N", "FULL_SCALE") else word
        for before, word in pairwise(["", *words])
        if word != "..." or before.startswith("--")  # more of the same, or a value that is left out
    ]
    while hasattr(command, "commands"):
        if not words or words[0].startswith("-"):
            return verb, {}
        found = command.get_command(None, words[0])  # verbs are imported when they are asked for
        if found is None:
            raise typer.BadParameter(f"no verb {words[0]!r}")
        command, verb, words = found, [*verb, words[0]], words[1:]
    try:
        return verb, command.make_context(verb[-1], list(words)).params
    except UsageError as error:
        if whole or type(error).__name__ != "MissingParameter":
            raise
    return verb, command.make_context(verb[-1], list(words), resilient_parsing=True).params


def check_settings(where: str, settings: list[str], file: Path | None = None) -> None:
    """Check settings of a training."""
    settings = [setting for setting in settings if setting not in ("KEY=VALUE", "...")]
    if where == OLDER[0]:
        block = [] if any(s.startswith("model.block") for s in settings) else ["model.block=60"]
        ours = [s for s in OLDER[1].split() if "prior" not in s or file is None or "peers" not in file.parts]
        settings = ["noise.sigma=50", *ours, *block, *settings]
    for setting in list(settings):
        settings = [*BESIDE.get(setting, []), *settings]
    load_train_config(
        file if file is not None and (ROOT / file).is_file() else None, ["data.train=x.zarr", *settings]
    )


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 150
    assert {c.where for c in COMMANDS} > {
        "README.md",
        "docs/first-hour.md",
        "configs/du-fast.yaml",
        "launch/gpu.sh",
    }


@pytest.mark.parametrize("where", sorted({command.where for command in COMMANDS}))
def test_every_command_names_a_verb_and_options_that_exist(where: str) -> None:
    wrong = []
    for command in COMMANDS:
        if command.where != where:
            continue
        try:
            verb, parameters = parse(command.words, command.whole)
            if "overrides" in parameters and where != EXTENDING and "$" not in command.text:
                configs = parameters.get("config")
                one = configs[0] if isinstance(configs, (list, tuple)) and configs else configs
                if verb != ["ablate"]:
                    check_settings(where, list(parameters["overrides"] or []), ROOT / one if one else None)
        except (UsageError, ConfigError) as error:
            message = str(error) if isinstance(error, ConfigError) else error.format_message()
            wrong.append(f"{command.text}\n    {message}")
    assert not wrong, "\n" + "\n".join(wrong)


def spans(pattern: str) -> list[tuple[str, str]]:
    return [
        (page.name, span)
        for page in PAGES
        if page.name not in (EXTENDING, "CHANGELOG.md")
        for span in page.spans
        if re.fullmatch(pattern, span)
    ]


@pytest.mark.parametrize(
    ("where", "span"), spans(rf"(?:{SECTIONS})\.[a-z_.]+=\S.*|training\.engine=.*|noise=\S.*")
)
def test_settings_in_sentences_are_valid(where: str, span: str) -> None:
    check_settings(where, shlex.split(span))


def keys() -> set[str]:
    """Names of all settings, of all kinds of a section."""
    schema = TrainConfig.model_json_schema()
    found: set[str] = set()

    def walk(node: dict[str, Any], name: str) -> None:
        found.add(name)
        for kind in [node, *node.get("anyOf", []), *node.get("oneOf", [])]:
            if "$ref" in kind:
                walk(schema["$defs"][kind["$ref"].rsplit("/", 1)[-1]], name)
            for key, value in kind.get("properties", {}).items():
                walk(value, f"{name}.{key}".lstrip("."))

    walk(schema, "")
    return found


def test_names_of_settings_in_sentences_exist() -> None:
    known = keys()
    files = r"(?!.*\.(?:md|json|safetensors|py|yaml|jsonl|zarr|npy)$)"
    named = spans(rf"{files}(?:{SECTIONS})\.[a-z_]+(?:\.[a-z_]+)*")
    assert len(named) > 20
    assert not [(where, name) for where, name in named if name not in known]


def test_settings_in_yaml_blocks_are_valid() -> None:
    blocks = [(page, block) for page in PAGES for block in page.blocks if block.language == "yaml"]
    assert blocks
    for page, block in blocks:
        # A key that stands there several times is a choice: each is checked by itself.
        for part in re.split(r"^(?=\w)", block.text, flags=re.MULTILINE):
            content = yaml.safe_load(part)
            if content:
                assert set(content) <= {*SECTIONS.split("|"), "run", "seed", "device"}, page.name
                TrainConfig.model_validate({"data": {"train": "x.zarr"}} | content)


def test_files_of_settings_and_profiles_are_valid(tmp_path: Path) -> None:
    for path in tracked("configs/*.yaml"):
        if "studies" in path.parts:
            read_study(path, tmp_path, ["data.train=x.zarr"])
        else:
            load_train_config(path, ["data.train=x.zarr"])
    for path in tracked("slurm/profiles/*.yaml"):
        job_request({}, str(path))
