"""Moved: import from hpcdeq.console."""

from hpcdeq.console import Bar, progress, result, result_json, say, table

__all__ = ["Bar", "progress", "result", "result_json", "say", "table"]
