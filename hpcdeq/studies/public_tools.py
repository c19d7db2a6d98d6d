"""Public tools that the paper does not compare with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from hpcdeq.errors import MissingExtraError
from hpcdeq.studies.method import Denoise, Floats, Method

_SUBSPACE = 10  # FastHyDe's default


def public_tools() -> list[Method]:
    """Return them all, whether they are installed or not."""

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


def require(key: str) -> None:
    """See that a method can be applied, whichever it is.

    Raises
    ------
    MissingExtraError
        If the package that it takes is not installed.
    """
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
