"""Configuration: YAML for people, ``key.sub=value`` on the command line, one validated tree as the truth."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import OmegaConf
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from hpcdeq.documents import check_yaml, read_yaml_text, shortened
from hpcdeq.errors import ConfigError, suggestion
from hpcdeq.models import ModelSettings
from hpcdeq.noise import Complex, Gaussian
from hpcdeq.sparse import KSvdSettings

_UNKNOWN = (
    "extra_forbidden",
    "unexpected_keyword_argument",
)  # pydantic's words for a key that it does not know
_MOST_LINES = 20  # of what is wrong with a configuration


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DataConfig(_Section):
    """Which archives to learn from, and how they are streamed."""

    train: Path
    """Archive of clean scenes to learn from."""
    val: Path | None = None
    """Archive to validate on; without one, every tenth training scene (at least one of two or more) is held out."""
    split: Path | None = None
    """Split file (``hpcdeq split``): learn from its train part only, and validate on its val part if it has one."""
    val_blocks: int = Field(default=32, ge=1)
    """Blocks that are validated on; the same ones every time."""
    batch: int = Field(default=16, ge=1)
    """Blocks in a batch, of all processes together: any number of processes takes the same steps."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Blocks that a process works on at a time, if its part of a batch does not fit: their gradients are added up."""
    on_bad_chunk: Literal["stop", "skip"] = "stop"
    """What to do about a shard that cannot be read: ``stop`` with its name, or ``skip`` it and list it in bad_chunks.txt."""
    augment: bool = True
    """Flip and rotate the blocks."""
    shuffle_shards: int = Field(default=16, ge=1)
    """Shards whose blocks are shuffled together; memory grows with it."""
    workers: int = Field(default=2, ge=1)
    """Threads that decode and degrade."""


def _check_length(value: int | str) -> int | str:
    if (value < 0) if isinstance(value, int) else not re.fullmatch(r"\d+ epochs?", value):
        raise ValueError("must be a number of steps of at least 0, or of epochs, such as '100 epochs'")
    return value


Length = Annotated[int | str, AfterValidator(_check_length)]


class DdpConfig(_Section):
    """Every process has the whole model and the whole optimiser; their gradients are averaged."""

    kind: Literal["ddp"] = "ddp"


class DeepSpeedConfig(_Section):
    """DeepSpeed's ZeRO (extra: deepspeed): what the optimiser needs is divided among the processes."""

    kind: Literal["deepspeed"]
    stage: Literal[0, 1, 2, 3] = 1
    """What is divided: nothing; Adam's memory; gradients too; parameters too."""
    offload: bool = False
    """Whether Adam's memory and its work are left to the CPU, from stage 1 on."""

    @model_validator(mode="after")
    def _check(self) -> DeepSpeedConfig:
        if self.offload and self.stage == 0:
            raise ValueError("offload=true needs a stage of 1, 2 or 3: stage 0 divides nothing")
        return self


EngineConfig = Annotated[DdpConfig | DeepSpeedConfig, Field(discriminator="kind")]


class TrainingConfig(_Section):
    """How long and how fast to learn."""

    start_from: Path | None = None
    """Model folder whose dictionary and weights to begin with."""
    start_scalars: bool = True
    """Whether to begin with b and mu of that model too; ``false`` begins at ``model.b`` and ``model.mu``."""
    pretrain_steps: Length = 2000
    """Steps of the prior alone, equation (12); or ``150 epochs``."""
    pretrain_lr: float = Field(default=1e-3, gt=0)
    """Learning rate of these."""
    steps: Length = 1000
    """Steps of the whole model, equations (13) and (21); or ``100 epochs``."""
    lr: float = Field(default=1e-4, gt=0)
    """Learning rate of these."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How both rates go on: ``cosine`` rises over the first twentieth of the phase's steps, and falls along half a cosine to 0 at
    the last one (arXiv:1608.03983)."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the running average of the weights that is validated and written in their stead, such as 0.999; 0 for none."""
    lr_scalars_factor: float = Field(default=20.0, gt=0)
    """Learning rate of log b and log mu, relative to that of the weights."""
    support_sizes: tuple[Annotated[int, Field(ge=1)], ...] = (3, 4, 5, 6, 8, 10, 12, 16)
    """Numbers of atoms a block that the trained fast map is tried with on the validation blocks, beside the one it was trained
    with; the best one is written into the model. Empty keeps that of training."""
    tolerances: tuple[Annotated[float, Field(gt=0)], ...] = (3e-4,)
    """Residuals to which the trained equilibrium model is tried to be solved on the validation blocks, where they are larger than
    that of its training, ``model.solver.tolerance``; the largest that costs less than 0.02 dB is written into the model, which is
    faster so. Empty keeps that of training."""
    largest_residual: float = Field(default=0.1, gt=0)
    """A step of an equilibrium model whose blocks' mean residual is above this has no gradient worth taking: it is skipped."""
    jacobian_weight: float = Field(default=0.0, ge=0)
    """Weight in the loss of the mean square of the map's Jacobian at the fixed point (arXiv:2106.14342); 0 leaves it out."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient; a larger one is scaled down."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the prior computes in while it learns; weights, gradients and all else stay float32."""
    engine: EngineConfig = DdpConfig()
    """How several processes take a step: ``ddp``, or DeepSpeed's ZeRO; the steps are the same."""
    validate_every: int = Field(default=100, ge=1)
    """Steps between validations."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Steps between checkpoints: what a kill can cost."""
    keep: int = Field(default=2, ge=1)
    """Latest checkpoints that are kept, beside the best."""
    log_every: int = Field(default=10, ge=1)
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = False
    """Also write TensorBoard files (extra: track)."""


class TrainConfig(_Section):
    """Everything that decides what ``hpcdeq train`` makes."""

    run: Path = Path("run")
    """Folder of the run; the same command with the same folder continues it."""
    seed: int = Field(default=0, ge=0)
    """Seed of the weights, the blocks and the noise."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    data: DataConfig
    noise: Gaussian | Complex = Gaussian(sigma=50.0)
    """Noise that is added to the clean blocks."""
    dictionary: KSvdSettings | Path = KSvdSettings()
    """A dictionary's file, or how to learn one from the training scenes."""
    model: ModelSettings = ModelSettings()
    training: TrainingConfig = TrainingConfig()


def load_train_config(file: Path | None, overrides: Sequence[str]) -> TrainConfig:
    """Merge the defaults, a YAML file and ``key.sub=value`` overrides; the later wins.

    A section whose ``kind`` is changed is replaced as a whole, as the keys of the old kind mean nothing to the new one.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a key or value is wrong; it names them all, with the nearest valid key.
    """
    defaults = TrainConfig(data=DataConfig(train=Path())).model_dump(mode="json")
    del defaults["data"]["train"]
    merged = _merge(_merge(defaults, _read_yaml(file)), _dotlist(overrides))
    if "train" not in merged["data"]:
        raise ConfigError(
            "data.train is not set: say which archive to learn from, e.g. data.train=scenes.zarr"
        )
    try:
        return TrainConfig.model_validate(merged)
    except ValidationError as error:
        told = "" if file is None else f"; the config file is {file}"
        raise ConfigError("\n".join(_explain(error)) + told) from error


def by_dotted_name(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Give the values of nested settings, each with its name, such as ``training.lr``."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from by_dotted_name(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def dump_yaml(config: TrainConfig) -> str:
    """Return the whole configuration as YAML that `load_train_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read_yaml(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        content = OmegaConf.to_container(OmegaConf.create(read_yaml_text(file)), resolve=True)
    except Exception as error:  # the parsers raise whatever they like
        raise ConfigError(f"cannot read the config file {file}: {shortened(str(error))}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"the config file {file} must hold keys and values, got {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def _dotlist(overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        if "=" not in override or override.startswith(("=", "-")):
            raise ConfigError(
                f"{shortened(repr(override))} is not an override; write key.sub=value, e.g. training.steps=500"
            )
    try:
        for override in overrides:
            check_yaml(override.partition("=")[2])
        content = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)), resolve=True)
    except Exception as error:  # the parsers raise whatever they like
        words = shortened(" ".join(overrides))
        raise ConfigError(f"cannot read the overrides {words}: {shortened(str(error))}") from error
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        replaces = (
            isinstance(value, dict)
            and isinstance(old, dict)
            and value.get("kind", old.get("kind")) != old.get("kind")
        )
        merged[key] = (
            _merge(old, value)
            if isinstance(value, dict) and isinstance(old, dict) and not replaces
            else value
        )
    return merged


def _explain(error: ValidationError) -> list[str]:
    """One line for each wrong key: its dotted name, the rule, the value, and what was perhaps meant."""
    problems = error.errors(include_url=False)
    # A section of several kinds reports the errors of every kind; keep those of the kind that was named.
    other_kinds = [p for p in problems if p["type"] == "literal_error" and p["loc"][-1] == "kind"]
    meant = [
        p for p in problems if not any(p["loc"][: len(k["loc"]) - 1] == k["loc"][:-1] for k in other_kinds)
    ]
    lines = list(dict.fromkeys(_line(p) for p in meant)) or _unknown_kinds(other_kinds)
    more = len(lines) - _MOST_LINES
    return lines if more <= 0 else [*lines[:_MOST_LINES], f"and {more} more"]


def _unknown_kinds(problems: list[ErrorDetails]) -> list[str]:
    """One line for each section whose kind is none of its kinds."""
    valid: dict[str, list[str]] = {}
    named: dict[str, Any] = {}
    for problem in problems:
        section = ".".join(_keys(problem))
        valid.setdefault(section, []).append(problem["ctx"]["expected"].strip("'"))
        named[section] = problem["input"]
    return [
        f"{section}: must be one of {', '.join(kinds)} (got {shortened(repr(named[section]))})"
        for section, kinds in valid.items()
    ]


def _keys(problem: ErrorDetails) -> list[str]:
    # Besides keys, a location names the class of the kind (capitalised) and pydantic's own steps (in brackets); the first is a
    # key, and the last of an unknown one.
    location = [str(part) for part in problem["loc"]]
    surely = {0, len(location) - 1} if problem["type"] in _UNKNOWN else {0}
    return [part for i, part in enumerate(location) if i in surely or not (part[:1].isupper() or "[" in part)]


def _line(problem: ErrorDetails) -> str:
    location, keys = [str(part) for part in problem["loc"]], _keys(problem)
    name = shortened(".".join(keys))
    if problem["type"] not in _UNKNOWN:
        # A section says what is in it itself.
        got = "" if isinstance(problem["input"], dict) else f" (got {shortened(repr(problem['input']))})"
        return f"{name}: {problem['msg'].removeprefix('Value error, ')}{got}"
    schema = _schema()
    classes = schema["$defs"]
    node = schema
    for part in location[:-1]:
        if part in classes:
            node = classes[part]
        elif part in node.get("properties", {}):
            node = node["properties"][part]
            node = classes[node["$ref"].rsplit("/", 1)[-1]] if "$ref" in node else node
    return f"{name}: unknown key; {suggestion(keys[-1], node.get('properties', {}))}"


@cache
def _schema() -> dict[str, Any]:
    return TrainConfig.model_json_schema()
