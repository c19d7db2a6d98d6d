"""Named ways to score a denoiser: what part of a scene, scaled how, cut into which blocks. Numbers of two of them differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcdeq.archive import Scene
from hpcdeq.errors import ConfigError, SceneError, suggestion
from hpcdeq.noise import Gaussian
from hpcdeq.studies.degrade import noisy_pixels

Floats = NDArray[np.float32]

BLOCK = 60  # pixels, of methods that have no blocks of their own


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How scenes are prepared and cut."""

    name: str
    about: str
    crop: int | None = None
    """Edge in pixels of the middle of a scene that is used; None uses all of it."""
    stretch: bool = False
    """Whether each scene is first scaled so that its least value is 0 and its largest 1."""
    block: int | None = None
    """Edge of a block in pixels; None leaves a model its own, and others have blocks of 60."""
    overlap: int | None = None
    """Pixels that blocks share, blended; None is a third of a block, 0 lays them side by side."""

    def overlap_of(self, block: int) -> int:
        """Overlap for blocks of this edge."""
        return block // 3 if self.overlap is None else self.overlap

    def case(self, scene: Scene, sigma: float, seed: int) -> Case:
        """Prepare a scene, and add noise of ``sigma`` / 255.

        Without crop and stretch it is the noise that `hpcdeq degrade` and `hpcdeq evaluate` add with this seed.

        Raises
        ------
        SceneError
            If the scene is smaller than the crop, or a chunk is damaged.
        """
        clean, valid = scene.read(), scene.valid_mask()
        if self.crop is not None:
            height, width = clean.shape[1:]
            if min(height, width) < self.crop:
                raise SceneError(
                    f"scene {scene.name} is {height} x {width} pixels; "
                    f"protocol {self.name} scores the middle {self.crop} x {self.crop}"
                )
            y, x = (height - self.crop) // 2, (width - self.crop) // 2
            clean = np.ascontiguousarray(clean[:, y : y + self.crop, x : x + self.crop])
            valid = valid[y : y + self.crop, x : x + self.crop]
        if self.stretch and valid.any():
            least, largest = clean[:, valid].min(), clean[:, valid].max()
            clean = (clean - least) / max(largest - least, np.float32(1e-12))
        noisy = noisy_pixels(clean, scene.name, Gaussian(sigma=sigma), seed, scene.shard_shape[0])
        clean[:, ~valid] = noisy[:, ~valid] = 0.0
        return Case(clean=clean, noisy=noisy, valid=valid, wavelengths=scene.wavelengths)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A clean scene and its noisy copy, ``(band, y, x)``."""

    clean: Floats
    noisy: Floats
    valid: NDArray[np.bool_]
    """(y, x), False where there is no data; such pixels are 0 in both, and are not scored."""
    wavelengths: NDArray[np.float64] | None


PROTOCOLS = {
    p.name: p
    for p in (
        Protocol(
            name="hpcdeq",
            about="the whole scene as it was ingested; a model's own blocks, others of 60, overlapping by a third and blended",
        ),
        Protocol(
            name="paper",
            about="the whole scene as it was ingested; blocks of 60 side by side, for every method that works on blocks",
            block=BLOCK,
            overlap=0,
        ),
        Protocol(
            name="qrnn3d",
            about="the middle 512 x 512 pixels, each scene scaled to [0, 1] by its least and largest value; blocks as hpcdeq",
            crop=512,
            stretch=True,
        ),
    )
}


def protocol_of(name: str) -> Protocol:
    """Return the protocol of a name."""
    if name not in PROTOCOLS:
        raise ConfigError(f"--protocol: there is no {name!r}; {suggestion(name, PROTOCOLS)}")
    return PROTOCOLS[name]
