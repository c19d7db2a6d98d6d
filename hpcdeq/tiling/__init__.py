"""Pure geometry: windows, tiles, blending weights, one owner for every output pixel."""

from hpcdeq.tiling.geometry import Window, blend_weights, cells_along, partition, tiles_of

__all__ = ["Window", "blend_weights", "cells_along", "partition", "tiles_of"]
