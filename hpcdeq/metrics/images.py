"""What the metrics take: tensors or arrays, read one band at a time in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Image: TypeAlias = Tensor | NDArray[Any]


def pairs_of_bands(reference: Image, estimate: Image) -> Iterator[tuple[Tensor, Tensor]]:
    """Bands of both images as float64 (H, W), so that a scene never lies in memory twice."""
    for x, y in zip(reference, estimate, strict=True):
        yield _double(x), _double(y)


def mean_over(valid: Tensor, values: Tensor) -> Tensor:
    """Mean of ``values`` (H, W) over the valid pixels; the rest may hold anything."""
    # Picking by a mask copies, and most scenes are valid everywhere.
    return values.mean() if bool(valid.all()) else values[valid].mean()


def check_images(reference: Image, estimate: Image, mask: Image | None) -> Tensor:
    """Check what a metric is given and return the valid pixels, (H, W) bool on the images' device.

    Raises
    ------
    ValueError
        If the images are not floats of one shape (d, H, W) on one device, or the mask leaves no pixel.
    """
    shape = tuple(reference.shape)
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"reference must be (d, H, W) and not empty, got shape {shape}")
    if tuple(estimate.shape) != shape:
        raise ValueError(f"estimate must have the reference's shape {shape}, got {tuple(estimate.shape)}")
    for name, image in (("reference", reference), ("estimate", estimate)):
        if not (image.is_floating_point() if isinstance(image, Tensor) else image.dtype.kind == "f"):
            raise ValueError(
                f"{name} must hold floats, nominally in [0, 1], got {image.dtype}: scale it first"
            )
    devices = [_device(reference), _device(estimate)]
    if devices[0] != devices[1]:
        raise ValueError(f"reference is on {devices[0]}, estimate on {devices[1]}; put both on one device")
    if mask is None:
        return torch.ones(shape[1:], dtype=torch.bool, device=devices[0])
    if tuple(mask.shape) != shape[1:]:
        raise ValueError(f"mask must be (H, W) = {shape[1:]}, got shape {tuple(mask.shape)}")
    valid = mask.to(devices[0]) if isinstance(mask, Tensor) else torch.from_numpy(np.array(mask, bool))
    valid = valid.to(device=devices[0], dtype=torch.bool)
    if not bool(valid.any()):
        raise ValueError("mask leaves no pixel to measure: it is False everywhere")
    return valid


def _double(band: Image) -> Tensor:
    # A copy: arrays may be read-only or have negative strides, which tensors cannot.
    return (
        band.detach().double() if isinstance(band, Tensor) else torch.from_numpy(np.array(band, np.float64))
    )


def _device(image: Image) -> torch.device:
    return image.device if isinstance(image, Tensor) else torch.device("cpu")
