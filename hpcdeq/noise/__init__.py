"""Degradations that are the same on every machine, and estimates of how noisy a scene is."""

from hpcdeq.noise.degradations import Complex, Degradation, Gaussian, add_noise, sigma_range_of
from hpcdeq.noise.estimation import estimate_sigma
from hpcdeq.noise.keyed import generator, stable_hash

__all__ = [
    "Complex",
    "Degradation",
    "Gaussian",
    "add_noise",
    "estimate_sigma",
    "generator",
    "sigma_range_of",
    "stable_hash",
]
