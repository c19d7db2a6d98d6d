"""How a trained model is applied: what may be set, and the model set so."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from hpcdeq.cluster.device import check_device_name, choose_device
from hpcdeq.errors import ConfigError
from hpcdeq.models import SparseDenoiser, load_model, read_card
from hpcdeq.noise import sigma_range_of

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_DTYPES = ("float32", "input")
# A GPU has done with fewer before it is given the next operation; a full map needs some GB for so many.
_BATCH_PIXELS = 16 * 60**2


@dataclass(frozen=True, kw_only=True)
class DenoiseSettings:
    """How a trained model is applied to scenes."""

    overlap: int | None = None
    """Pixels shared by neighbouring tiles, blended with smooth weights; None is a third of a tile, 0 is the paper's way."""
    batch: int | None = None
    """Tiles computed at once on a GPU; None is as many as have the pixels of 16 tiles of 60 x 60. On a CPU each thread of torch
    computes one."""
    iterations: int | None = None
    """Most iterations of the solver; None keeps those of the model."""
    tolerance: float | None = None
    """Tolerance of the solver; None keeps that of the model."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the prior computes in; ``bfloat16`` is up to twice as fast on processors that have it, but its rounding leaves residuals
    near 2e-2: no smaller tolerance is reached."""
    codes: bool = False
    """Whether the sparse codes are kept beside the pixels."""
    dtype: Literal["float32", "input"] = "float32"
    """How pixels are stored: ``input`` keeps the integers and the scale of an input that has them."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    unit_mib: int = 256
    """Largest size of a unit in MiB, its pixels as float32. Tiles that cross its border are computed twice: one in ten of blocks of
    60 that overlap by 20, for units of 1300 x 1300 x 31. Those that are read ahead, computed and written are in memory together."""

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"batch must be at least 1, got {self.batch}")
        if self.precision not in _PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(_PRECISIONS)}, got {self.precision!r}")
        if self.dtype not in _DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, got {self.dtype!r}")
        if self.overlap is not None and self.overlap < 0:
            raise ConfigError(f"overlap must not be negative, got {self.overlap}")
        if self.unit_mib < 1:
            raise ConfigError(f"unit_mib must be at least 1, got {self.unit_mib}")
        check_device_name(self.device)

    def overlap_of(self, model: SparseDenoiser) -> int:
        """Overlap in pixels for the tiles of a model.

        Raises
        ------
        ConfigError
            If it is not smaller than a tile.
        """
        tile = model.settings.block
        overlap = tile // 3 if self.overlap is None else self.overlap
        if overlap >= tile:
            raise ConfigError(f"overlap must be below the model's block of {tile} pixels, got {overlap}")
        return overlap

    def batch_of(self, model: SparseDenoiser) -> int:
        """Tiles of a model that are computed at once on a GPU."""
        return self.batch or max(1, _BATCH_PIXELS // model.settings.block**2)


def set_up(model: SparseDenoiser, settings: DenoiseSettings) -> SparseDenoiser:
    """Return the model with its solver set as the settings say, where it is; the one given keeps its settings."""
    changes: dict[str, Any] = {
        k: v
        for k, v in (("iterations", settings.iterations), ("tolerance", settings.tolerance))
        if v is not None
    }
    try:
        solver = replace(model.settings.solver, **changes)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    prepared = copy.copy(model)
    prepared.settings = replace(model.settings, solver=solver)
    prepared.prior_dtype = _PRECISIONS[settings.precision]
    return prepared.eval()


def prepare(model: SparseDenoiser, settings: DenoiseSettings, local_rank: int = 0) -> SparseDenoiser:
    """Return the model as `set_up` does, on the device; processes of a node, told apart by `local_rank`, take its GPUs in turn."""
    return set_up(model, settings).to(choose_device(settings.device, local_rank))


@dataclass(frozen=True, kw_only=True)
class AppliedModel:
    """A model file, applied to an archive."""

    model: SparseDenoiser
    """As `set_up` returns it."""
    settings: DenoiseSettings
    card: dict[str, Any]
    """Of the file."""

    @classmethod
    def of(cls, folder: Path, settings: DenoiseSettings) -> AppliedModel:
        """Read a model's folder. It stays on the CPU: where a run is planned there may be no GPU."""
        return cls(model=set_up(load_model(folder), settings), settings=settings, card=read_card(folder))

    def on_device(self, local_rank: int) -> AppliedModel:
        """Return it as `prepare` does, where it computes."""
        return replace(self, model=prepare(self.model, self.settings, local_rank))

    @property
    def weights(self) -> str:
        """Digest of the weights."""
        digest: str = self.card["weights_sha256"]
        return digest

    @property
    def overlap(self) -> int:
        """Pixels that neighbouring tiles share."""
        return self.settings.overlap_of(self.model)

    @property
    def trained(self) -> tuple[float, float] | None:
        """Least and largest noise level that the model was trained for, in units of 1/255; None if it does not say."""
        return sigma_range_of(self.card["provenance"].get("config", {}).get("noise"))
