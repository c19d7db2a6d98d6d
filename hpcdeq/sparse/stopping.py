"""Checks of the numbers that tell a solver what to solve and when to stop."""

from __future__ import annotations

import math


def check_penalty(name: str, penalty: float, *, positive: bool = False) -> None:
    """Raise ValueError unless ``penalty`` is a finite number and not negative, or ``positive``."""
    if not (math.isfinite(penalty) and (penalty > 0 if positive else penalty >= 0)):
        rule = "positive" if positive else "at least 0"
        raise ValueError(f"{name} must be a finite number, {rule}, got {penalty}")


def check_stopping(tolerance: float, iterations: int) -> None:
    """Raise ValueError unless ``tolerance`` is positive and ``iterations`` at least 1."""
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"tolerance must be a positive number, got {tolerance}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
