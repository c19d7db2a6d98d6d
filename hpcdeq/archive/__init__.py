"""What a scene is on disk: Zarr v3 archives, raw-file readers, ingest, validation and patch streams."""

from hpcdeq.archive.draft import SceneDraft
from hpcdeq.archive.layout import SceneHeader
from hpcdeq.archive.scene import Scene
from hpcdeq.archive.store import Archive, open_archive

__all__ = ["Archive", "Scene", "SceneDraft", "SceneHeader", "open_archive"]
