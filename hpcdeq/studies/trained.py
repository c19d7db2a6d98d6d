"""Trained models as rows of the tables."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hpcdeq.archive import Scene
from hpcdeq.archive.splits import check_unseen
from hpcdeq.inference import DenoiseSettings, denoise_array
from hpcdeq.models import ModelSettings, SparseDenoiser, learnt_scenes, load_model, read_card
from hpcdeq.noise import sigma_range_of
from hpcdeq.solvers import Unrolled
from hpcdeq.studies.method import Denoise, Method
from hpcdeq.studies.protocols import Protocol

_PRIORS = {"cnn": "the prior alone", "qrnn3d": "small QRNN3D alone"}
_NETWORKS = {"hsid_cnn": "HSID-CNN", "memnet": "MemNet", "qrnn3d_unet": "QRNN3D"}
_SOURCES = {
    "HSID-CNN": "Yuan et al. 2019",
    "MemNet": "Tai et al. 2017",
    "QRNN3D": "Wei et al. 2021",
}
ORDER = ("HSID-CNN", "MemNet", "QRNN3D", *_PRIORS.values(), "DU-full", "DEQ-full", "DU-fast", "DEQ-fast")


def title_of(settings: ModelSettings) -> str:
    """Return what a model with these settings is called in the tables."""
    kind = settings.prior.kind
    if settings.map == "prior":
        return _NETWORKS.get(kind) or _PRIORS[kind]
    name = f"{'DU' if isinstance(settings.adjoint, Unrolled) else 'DEQ'}-{settings.map}"
    return name if kind == "cnn" else f"{name}, prior {kind}"


def trained_method(folder: Path, scenes: Sequence[Scene], device: str) -> Method:
    """Return the row of a model's folder, to be tested on scenes that it has not learnt from.

    Raises
    ------
    ConfigError
        If it has learnt from one of them.
    """
    card = read_card(folder)
    model = load_model(folder)
    provenance: dict[str, Any] = card["provenance"]
    check_unseen(scenes, learnt_scenes(provenance), f"the model {folder}")
    title = title_of(model.settings)
    in_paper = title in _SOURCES or model.settings.map != "prior"
    return Method(
        key=title,
        title=title,
        tables=frozenset(({2} if title in _SOURCES else {1, 2}) if in_paper else {0}),
        source=_SOURCES.get(
            title, "section IV, V of the paper" if in_paper else "equation (12) of the paper"
        ),
        denoiser=lambda protocol: model_denoiser(model, protocol, device),
        identity={"weights": card["weights_sha256"], "settings": asdict(model.settings)},
        parameters=model.parameter_count,
        training=budget(provenance),
        model=model,
        sigmas=_trained_sigmas(provenance),
    )


def model_denoiser(
    model: SparseDenoiser, protocol: Protocol, device: str, iterations: int | None = None
) -> Denoise:
    """Make a model ready; with ``iterations`` it takes all of them, whether it has converged or not."""
    blocked = copy.copy(model)
    block = protocol.block or model.settings.block
    blocked.settings = replace(model.settings, block=block)
    settings = DenoiseSettings(
        overlap=protocol.overlap_of(block),
        device=device,
        iterations=iterations,
        tolerance=None if iterations is None else 0.0,
    )
    return lambda noisy, sigma: denoise_array(blocked, noisy, settings)


def budget(provenance: dict[str, Any]) -> str:
    """Say in a line what a model's training cost, with that of the model it began with."""
    config = provenance.get("config")
    if not config:
        return "unknown"
    before, training = provenance.get("before"), config["training"]
    blocks = f"{config['data']['batch']} blocks of {config['model']['block']} px"
    phases = [
        f"{training[steps]} steps{of}"
        for steps, of in (("pretrain_steps", " of the prior"), ("steps", ""))
        if training[steps]
    ]
    own = f"{' and '.join(phases) or 'no steps'} of {blocks}"
    return f"{budget(before)}; then {own}" if before else own


def _trained_sigmas(provenance: dict[str, Any]) -> tuple[float, float] | None:
    config = provenance.get("config")
    return sigma_range_of(config["noise"]) if config else None
