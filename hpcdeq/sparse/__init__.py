"""Classical sparse coding on tensors: dictionaries and pursuits."""

from hpcdeq.sparse.ksvd import KSvdResult, KSvdSettings, learn_dictionary
from hpcdeq.sparse.pursuit import OmpResult, batch_omp
from hpcdeq.sparse.shared_support import lasso_order, simultaneous_omp

__all__ = [
    "KSvdResult",
    "KSvdSettings",
    "OmpResult",
    "batch_omp",
    "lasso_order",
    "learn_dictionary",
    "simultaneous_omp",
]
