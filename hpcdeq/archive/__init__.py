"""What a scene is on disk: Zarr v3 archives, raw-file readers, ingest, validation and patch streams."""

from hpcdeq.archive.layout import SceneHeader
from hpcdeq.archive.store import Archive, Scene, SceneDraft, open_archive

__all__ = ["Archive", "Scene", "SceneDraft", "SceneHeader", "open_archive"]
