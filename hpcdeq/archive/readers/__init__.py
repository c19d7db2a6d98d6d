"""Raw files as scenes: find them by content, open them for reading window by window. One module a format."""

from hpcdeq.archive.readers.base import RawScene, Selection, Source
from hpcdeq.archive.readers.find import Finding, find
from hpcdeq.archive.readers.open import open_raw

__all__ = ["Finding", "RawScene", "Selection", "Source", "find", "open_raw"]
