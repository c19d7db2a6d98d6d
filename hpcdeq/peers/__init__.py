"""Denoisers that are not ours and need no training, for comparison: TDL and LLRT."""

from hpcdeq.peers.llrt import LlrtSettings, llrt
from hpcdeq.peers.tdl import TdlSettings, tdl

__all__ = ["LlrtSettings", "TdlSettings", "llrt", "tdl"]
