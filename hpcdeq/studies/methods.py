"""What can be compared: the methods of the paper's tables, the four models, and public tools, behind one call."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcdeq import peers, sparse
from hpcdeq.archive import Scene
from hpcdeq.archive.splits import check_unseen
from hpcdeq.cluster.device import choose_device
from hpcdeq.errors import ConfigError, MissingExtraError, suggestion
from hpcdeq.inference import DenoiseSettings, denoise_array
from hpcdeq.models import (
    ModelSettings,
    SparseDenoiser,
    learnt_scenes,
    load_dictionary,
    load_model,
    read_card,
    read_dictionary_card,
)
from hpcdeq.noise import sigma_range_of
from hpcdeq.solvers import Unrolled
from hpcdeq.studies.protocols import BLOCK, Protocol
from hpcdeq.tiling import blend_weights, tiles_of

Floats = NDArray[np.float32]
Denoise = Callable[[Floats, float], Floats]
"""(noisy scene ``(band, y, x)``, standard deviation of its noise) -> denoised scene."""

_BLOCKS_AT_ONCE = 4
_SUBSPACE = 10  # FastHyDe's default


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of a table."""

    key: str
    """Its name on the command line."""
    title: str
    tables: frozenset[int]
    """The paper's tables that it is a row of; 0 stands for those that the paper does not compare with."""
    source: str
    """The publication."""
    denoiser: Callable[[Protocol], Denoise]
    """Makes it ready to be applied as a protocol says."""
    identity: dict[str, Any] = field(default_factory=dict)
    """What decides its output beside scene, noise and protocol, as JSON values."""
    parameters: int | None = None
    """Learnt numbers."""
    training: str = ""
    """What its training cost; empty if it learns nothing."""
    model: SparseDenoiser | None = None
    sigmas: tuple[float, float] | None = None
    """Least and largest noise level that it was trained at."""


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
    atoms = _dictionary(dictionary, models, scenes)
    known = {method.key: method for method in [*_classical(atoms, on), *_public()]}
    asked = [key for key, m in known.items() if m.tables != {0}] if names is None else list(names)
    for name in asked:
        if name not in known:
            raise ConfigError(f"--methods: there is no {name!r}; {suggestion(name, known)}")
    if needing := [key for key in asked if key in _CODERS and atoms is None]:
        raise ConfigError(
            f"{', '.join(needing)} need a dictionary: give --dictionary FILE (from `hpcdeq dictionary`), or a --model, "
            "which holds one; or name other methods with --methods"
        )
    for name in asked:
        _require(name)
    trained = [_trained(folder, scenes, device) for folder in models]
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


def _dictionary(path: Path | None, models: Sequence[Path], scenes: Sequence[Scene]) -> Tensor | None:
    if path is not None:
        check_unseen(scenes, learnt_scenes(read_dictionary_card(path)), f"the dictionary {path}")
        return load_dictionary(path)
    return load_model(models[0]).atoms.detach() if models else None


# The paper's tables: what needs no training


_CODERS: dict[str, tuple[str, str, Callable[..., Tensor]]] = {
    "omp": ("batch-OMP", "Rubinstein et al. 2008", sparse.denoise_by_omp),
    "lasso": ("Lasso", "Tibshirani 1996", sparse.denoise_by_lasso),
    "sunsal-tv": ("SUnSAL-TV", "Iordache et al. 2012", sparse.denoise_by_sunsal_tv),
    "fast-tv": ("fast-TV", "Gkillas et al. 2020", sparse.denoise_by_fast_tv),
}


def _classical(atoms: Tensor | None, device: torch.device) -> list[Method]:
    """Return the methods of the paper that need no training; without a dictionary the sparse-coding ones cannot be applied."""
    digest = None if atoms is None else hashlib.sha256(atoms.cpu().numpy().tobytes()).hexdigest()

    def coding(code: Callable[[Tensor, Tensor, float], Tensor], protocol: Protocol) -> Denoise:
        assert atoms is not None
        dictionary, block = atoms.to(device), protocol.block or BLOCK

        def denoise(noisy: Floats, sigma: float) -> Floats:
            def each(blocks: Floats) -> Floats:
                return _array(code(torch.from_numpy(blocks).to(device), dictionary, sigma))

            return _in_blocks(each, noisy, block, protocol.overlap_of(block))

        return denoise

    def whole(
        key: str, title: str, source: str, denoise: Callable[[Tensor, float], Tensor], settings: Any
    ) -> Method:
        return Method(
            key=key,
            title=title,
            tables=frozenset({2}),
            source=source,
            denoiser=lambda _: (
                lambda noisy, sigma: _array(denoise(torch.from_numpy(noisy).to(device), sigma))
            ),
            identity=asdict(settings),
        )

    noisy = Method(
        key="noisy",
        title="noisy",
        tables=frozenset({1, 2}),
        source="",
        denoiser=lambda _: lambda noisy, sigma: noisy,
    )
    coders = [
        Method(
            key=key,
            title=title,
            tables=frozenset({1}),
            source=source,
            denoiser=partial(coding, code),
            identity={"dictionary": digest, **_constants(code)},
        )
        for key, (title, source, code) in _CODERS.items()
    ]
    return [
        noisy,
        *coders,
        whole("tdl", "TDL", "Peng et al. 2014", peers.tdl, peers.TdlSettings()),
        whole("llrt", "LLRT", "Chang et al. 2017", peers.llrt, peers.LlrtSettings()),
    ]


def _constants(code: Callable[..., Tensor]) -> dict[str, Any]:
    """What a method is told beside blocks, dictionary and sigma."""
    return {p.name: p.default for p in signature(code).parameters.values() if p.kind is p.KEYWORD_ONLY}


def _array(scene: Tensor) -> Floats:
    return scene.float().cpu().numpy()


def _in_blocks(denoise: Callable[[Floats], Floats], noisy: Floats, block: int, overlap: int) -> Floats:
    """Denoise a scene in blocks ``(block, band, y, x)``, a few at a time, blended where they overlap."""
    tiles = tiles_of(noisy.shape[1], noisy.shape[2], block, overlap)
    weights = blend_weights(tiles[0].height, tiles[0].width, overlap)
    total, weight = np.zeros_like(noisy), np.zeros(noisy.shape[1:], np.float32)
    for first in range(0, len(tiles), _BLOCKS_AT_ONCE):
        some = tiles[first : first + _BLOCKS_AT_ONCE]
        found = denoise(np.stack([noisy[(slice(None), *tile.slices)] for tile in some]))
        for tile, estimate in zip(some, found, strict=True):
            total[(slice(None), *tile.slices)] += weights * estimate
            weight[tile.slices] += weights
    return total / weight


# Public tools that the paper does not compare with


def _public() -> list[Method]:
    def row(key: str, title: str, source: str, package: str, denoise: Denoise) -> Method:
        return Method(
            key=key,
            title=title,
            tables=frozenset({0}),
            source=source,
            denoiser=lambda protocol: denoise,
            identity={"package": package, "version": _version(package)},
        )

    return [
        row("fasthyde", "FastHyDe", "Zhuang, Bioucas-Dias 2018; hyde-images", "hyde-images", _fasthyde),
        row("hyres", "HyRes", "Rasti et al. 2017; hyde-images", "hyde-images", _hyres),
        row("bm4d", "BM4D", "Maggioni et al. 2013; bm4d", "bm4d", _bm4d),
        row("tv", "TV, Chambolle", "Chambolle 2004; scikit-image", "scikit-image", _total_variation),
        row("wavelet", "BayesShrink", "Chang et al. 2000; scikit-image", "scikit-image", _wavelet),
    ]


_MODULES = {"fasthyde": "hyde", "hyres": "hyde", "bm4d": "bm4d", "tv": "skimage", "wavelet": "skimage"}


def _require(key: str) -> None:
    module = _MODULES.get(key)
    if module is not None and find_spec(module) is None:
        raise MissingExtraError(module, "peers", f"the method {key}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _fasthyde(noisy: Floats, sigma: float) -> Floats:
    import hyde

    return _of_image(hyde.FastHyDe()(_as_image(noisy), noise_type="additive", iid=True, k_subspace=_SUBSPACE))


def _hyres(noisy: Floats, sigma: float) -> Floats:
    import hyde

    return _of_image(hyde.HyRes()(_as_image(noisy)))


def _bm4d(noisy: Floats, sigma: float) -> Floats:
    import bm4d

    image = bm4d.bm4d(noisy.transpose(1, 2, 0), sigma)
    return np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)


def _total_variation(noisy: Floats, sigma: float) -> Floats:
    from skimage.restoration import denoise_tv_chambolle

    image = denoise_tv_chambolle(noisy.transpose(1, 2, 0), weight=sigma, channel_axis=-1)
    return np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)


def _wavelet(noisy: Floats, sigma: float) -> Floats:
    from skimage.restoration import denoise_wavelet

    bands = [denoise_wavelet(band, sigma=sigma, rescale_sigma=False) for band in noisy]
    return np.stack(bands).astype(np.float32)


def _as_image(scene: Floats) -> Tensor:
    """(band, y, x) -> (y, x, band), as these tools want it."""
    return torch.from_numpy(scene.transpose(1, 2, 0).copy())


def _of_image(image: Tensor) -> Floats:
    return np.ascontiguousarray(image.numpy().transpose(2, 0, 1), np.float32)


# Trained models

_PRIORS = {"cnn": "the prior alone", "qrnn3d": "small QRNN3D alone"}
_NETWORKS = {"hsid_cnn": "HSID-CNN", "memnet": "MemNet", "qrnn3d_unet": "QRNN3D"}
_SOURCES = {
    "HSID-CNN": "Yuan et al. 2019",
    "MemNet": "Tai et al. 2017",
    "QRNN3D": "Wei et al. 2021",
}
_ORDER = ("HSID-CNN", "MemNet", "QRNN3D", *_PRIORS.values(), "DU-full", "DEQ-full", "DU-fast", "DEQ-fast")


def title_of(settings: ModelSettings) -> str:
    """Return what a model with these settings is called in the tables."""
    kind = settings.prior.kind
    if settings.map == "prior":
        return _NETWORKS.get(kind) or _PRIORS[kind]
    name = f"{'DU' if isinstance(settings.adjoint, Unrolled) else 'DEQ'}-{settings.map}"
    return name if kind == "cnn" else f"{name}, prior {kind}"


def _trained(folder: Path, scenes: Sequence[Scene], device: str) -> Method:
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


def _check_distinct(trained: Sequence[Method]) -> None:
    seen: dict[tuple[str, tuple[float, float] | None], Method] = {}
    for method in trained:
        if seen.setdefault((method.title, method.sigmas), method) is not method:
            raise ConfigError(
                f"--model: two models are the row {method.title} for the same noise; give one of them"
            )


def _order(method: Method) -> tuple[int, str]:
    return (_ORDER.index(method.title) if method.title in _ORDER else len(_ORDER), method.title)
