"""Classical sparse coding on tensors: dictionaries, pursuits, the Lasso, codes of small total variation, and denoising by them."""

from hpcdeq.sparse.cosines import cosine_basis
from hpcdeq.sparse.denoising import (
    denoise_by_fast_tv,
    denoise_by_lasso,
    denoise_by_omp,
    denoise_by_sunsal_tv,
)
from hpcdeq.sparse.fast_tv import centroid_support, fast_tv
from hpcdeq.sparse.ksvd import KSvdResult, KSvdSettings, learn_dictionary
from hpcdeq.sparse.lasso import LassoResult, lasso
from hpcdeq.sparse.pursuit import OmpResult, batch_omp
from hpcdeq.sparse.shared_support import lasso_order, simultaneous_omp
from hpcdeq.sparse.sunsal_tv import sunsal_tv
from hpcdeq.sparse.total_variation import TvResult, total_variation

__all__ = [
    "KSvdResult",
    "KSvdSettings",
    "LassoResult",
    "OmpResult",
    "TvResult",
    "batch_omp",
    "centroid_support",
    "cosine_basis",
    "denoise_by_fast_tv",
    "denoise_by_lasso",
    "denoise_by_omp",
    "denoise_by_sunsal_tv",
    "fast_tv",
    "lasso",
    "lasso_order",
    "learn_dictionary",
    "simultaneous_omp",
    "sunsal_tv",
    "total_variation",
]
