"""Plans of scenes that do not exist."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hpcdeq.inference.plan import ScenePlan

_SMALL = ScenePlan(
    name="s",
    fingerprint="f",
    bands=7,
    height=200,
    width=40,
    shard_shape=(65, 65),
    block=24,
    overlap=8,
    unit_mib=1,
)


def a_plan(name: str = "s", **others: Any) -> ScenePlan:
    """Two units, unless something else is asked for."""
    return replace(_SMALL, name=name, **others)
