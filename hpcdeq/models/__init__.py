"""Denoisers: priors, fixed-point maps of sparse coding, the model that joins them, and model files."""

from hpcdeq.models.cnn import CnnSettings
from hpcdeq.models.denoiser import Codes, Denoised, ModelSettings, SparseDenoiser
from hpcdeq.models.files import (
    Identities,
    learnt_scenes,
    load_dictionary,
    load_model,
    read_card,
    read_dictionary_card,
    save_dictionary,
    save_model,
)
from hpcdeq.models.hsid_cnn import HsidCnnSettings
from hpcdeq.models.memnet import MemNetSettings
from hpcdeq.models.qrnn3d import Qrnn3dSettings
from hpcdeq.models.qrnn3d_unet import Qrnn3dUnetSettings
from hpcdeq.models.support import SupportSettings

__all__ = [
    "CnnSettings",
    "Codes",
    "Denoised",
    "HsidCnnSettings",
    "Identities",
    "MemNetSettings",
    "ModelSettings",
    "Qrnn3dSettings",
    "Qrnn3dUnetSettings",
    "SparseDenoiser",
    "SupportSettings",
    "learnt_scenes",
    "load_dictionary",
    "load_model",
    "read_card",
    "read_dictionary_card",
    "save_dictionary",
    "save_model",
]
