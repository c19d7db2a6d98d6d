"""The format of a scene: names, chunks, shards, codecs, and the bounds that stored metadata must keep.

``docs/archive-format.md`` is the specification for readers in other languages.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcdeq.documents import shortened
from hpcdeq.errors import HpcdeqError, SceneError

SCHEMA = 2
RADIANCE = "radiance"
WAVELENGTH = "wavelength"
FWHM = "fwhm"
VALID_MASK = "valid_mask"
FINGERPRINT = "hpcdeq_fingerprint"  # attribute of a scene that several processes may write: of what is in it
SHARD_CHECKSUM = "shard_checksum"
CODES = "codes"
SUPPORT = "support"
DICTIONARY = "dictionary"
NOISE = "noise_sigma"
CELL_Y, CELL_X = "cell_y", "cell_x"

CHUNK = 65  # pixels: what training reads; 1300 = 20 x 65
SHARDS = (260, 325, 195, 130, 65)  # pixels, in order of preference: what one writer owns; 1300 = 5 x 260
MAX_SHARD_BYTES = 128 << 20
MAX_EDGE = 1 << 20
MAX_BANDS = 1 << 14
MAX_CHUNK_BYTES = 1 << 30

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True, kw_only=True)
class SceneHeader:
    """All that is stored of a scene beside its pixels."""

    shape: tuple[int, int, int]
    """(band, y, x)."""
    dtype: np.dtype[Any]
    """Stored type: an integer type is kept, floats are stored as float32."""
    scale_factor: float = 1.0
    """Stored value times this is what models see, nominally in [0, 1]."""
    wavelengths: NDArray[np.float64] | None = None
    """(band,) centre wavelengths in nm, if known."""
    fwhm: NDArray[np.float64] | None = None
    """(band,) full widths at half maximum in nm, if known."""
    has_mask: bool = False
    """Whether some pixels hold no data: then ``valid_mask (y, x)`` is written."""
    codes: int = 0
    """Sparse codes a pixel: then ``codes (code, y, x)`` is written beside the pixels, in shards of the same pixels."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """Attributes of the scene's group: source, source_format, source_sha256, ..."""


def check_schema(schema: object, what: str, error: type[HpcdeqError] = SceneError) -> None:
    """Raise ``error`` unless ``what`` has the schema that this version reads."""
    if schema == SCHEMA:
        return
    older = isinstance(schema, int) and schema < SCHEMA
    advice = "make it again from its source with this version" if older else "update hpcdeq"
    raise error(f"{what} has schema {shortened(repr(schema))}; this version reads schema {SCHEMA}: {advice}")


def check_name(name: str) -> str:
    """Return ``name`` if it can name a scene, else raise.

    Raises
    ------
    SceneError
        Unless the name is 1 to 200 letters, digits, ``.``, ``_`` and ``-``, without ``..``, beginning with a
        letter or digit.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise SceneError(
            f"{shortened(repr(name))} cannot name a scene: use 1 to 200 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit, and no '..'; rename the file or folder"
        )
    return name


def shard_edge(size: int, bands: int) -> int:
    """Edge in pixels of the shards along an axis of ``size`` pixels: a multiple of ``CHUNK``.

    260 px where that leaves no sliver: a last shard thinner than a training block could never be trained on.
    Fewer where a shard of this many bands would be too large to hold in memory several times over; counted as float32,
    so that a scene and its noisy or denoised copies have the same shards.
    """
    fitting = [s for s in SHARDS if bands * s * s * 4 <= MAX_SHARD_BYTES] or [SHARDS[-1]]
    for edge in fitting:
        if size % edge == 0 or size % edge >= CHUNK or size < edge:
            return edge
    return fitting[0]
