"""Denoisers: priors, fixed-point maps of sparse coding, the model that joins them, and model files."""

from hpcdeq.models.denoiser import Denoised, ModelSettings, SparseDenoiser
from hpcdeq.models.files import load_dictionary, load_model, save_dictionary, save_model
from hpcdeq.models.prior import CnnPrior, PriorSettings
from hpcdeq.models.support import SupportSettings

__all__ = [
    "CnnPrior",
    "Denoised",
    "ModelSettings",
    "PriorSettings",
    "SparseDenoiser",
    "SupportSettings",
    "load_dictionary",
    "load_model",
    "save_dictionary",
    "save_model",
]
