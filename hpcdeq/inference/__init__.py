"""Bulk denoising: units of whole shards, computed by tiles, written once, recorded in a ledger."""

from hpcdeq.inference.applied import DenoiseSettings
from hpcdeq.inference.bulk import (
    denoise_archive,
    denoise_share,
    plan_archive,
    repair_archive,
    verify,
)
from hpcdeq.inference.whole import denoise_array
from hpcdeq.inference.worker import DenoiseReport

__all__ = [
    "DenoiseReport",
    "DenoiseSettings",
    "denoise_archive",
    "denoise_array",
    "denoise_share",
    "plan_archive",
    "repair_archive",
    "verify",
]
