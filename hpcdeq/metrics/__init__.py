"""How close an estimate is to a reference: MPSNR, SSIM, SAM and ERGAS, in one stated convention each."""

from hpcdeq.metrics.images import Image
from hpcdeq.metrics.quality import Scores, ergas, evaluate_all, mpsnr, sam
from hpcdeq.metrics.structure import ssim

__all__ = ["Image", "Scores", "ergas", "evaluate_all", "mpsnr", "sam", "ssim"]
