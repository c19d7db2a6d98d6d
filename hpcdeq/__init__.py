"""Denoise hyperspectral archives with sparse-coding Deep Unrolling and Deep Equilibrium models."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["__version__", "denoise", "load_model", "open_archive"]

if TYPE_CHECKING:
    from hpcdeq.api import denoise, load_model, open_archive
else:

    def __getattr__(name: str) -> object:
        """Import the functions when they are first asked for: torch takes seconds, and the command line does without."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from hpcdeq import api

        return getattr(api, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
