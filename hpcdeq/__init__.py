"""Denoise hyperspectral archives with sparse-coding Deep Unrolling and Deep Equilibrium models."""

__version__ = "0.1.0"
