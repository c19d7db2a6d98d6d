"""Classical sparse coding on tensors: dictionaries and pursuits."""

from hpcdeq.sparse.ksvd import KSvdResult, KSvdSettings, learn_dictionary
from hpcdeq.sparse.pursuit import OmpResult, batch_omp

__all__ = ["KSvdResult", "KSvdSettings", "OmpResult", "batch_omp", "learn_dictionary"]
