"""The paper's own numbers, on ICVL: never mixed with what is measured here, as data, scaling and split differ.

Gkillas, Ampeliotis, Berberidis, arXiv:2203.15901, Tables I to III: PSNR in dB, SSIM, SAM in radians; seconds for a scene of
1300 x 1300 x 31, on hardware that the paper does not name.
"""

from __future__ import annotations

SIGMAS = (30.0, 50.0, 70.0)

_NOISY = {"noisy": ((18.54, 0.112, 0.807), (14.12, 0.043, 0.993), (11.21, 0.024, 1.102))}
_MODELS = {
    "DU-full": ((42.60, 0.972, 0.045), (40.22, 0.956, 0.054), (39.14, 0.947, 0.056)),
    "DEQ-full": ((42.80, 0.973, 0.042), (40.75, 0.962, 0.047), (39.27, 0.949, 0.054)),
    "DU-fast": ((42.75, 0.974, 0.042), (40.62, 0.961, 0.050), (39.01, 0.948, 0.056)),
    "DEQ-fast": ((42.87, 0.975, 0.041), (40.77, 0.963, 0.048), (39.25, 0.950, 0.055)),
}

TABLES: dict[int, dict[str, tuple[tuple[float, float, float], ...]]] = {
    1: {
        **_NOISY,
        "batch-OMP": ((36.03, 0.889, 0.146), (33.17, 0.751, 0.232), (30.91, 0.660, 0.280)),
        "Lasso": ((36.41, 0.917, 0.113), (33.54, 0.849, 0.098), (31.30, 0.759, 0.130)),
        "SUnSAL-TV": ((37.98, 0.939, 0.089), (36.13, 0.927, 0.101), (34.49, 0.869, 0.126)),
        "fast-TV": ((38.62, 0.946, 0.082), (36.74, 0.908, 0.093), (35.02, 0.875, 0.118)),
        **_MODELS,
    },
    2: {
        **_NOISY,
        "TDL": ((40.58, 0.957, 0.062), (38.01, 0.932, 0.085), (36.36, 0.909, 0.105)),
        "LLRT": ((41.99, 0.967, 0.056), (38.99, 0.945, 0.075), (37.36, 0.930, 0.087)),
        "HSID-CNN": ((38.70, 0.949, 0.103), (36.17, 0.919, 0.134), (34.31, 0.886, 0.161)),
        "MemNet": ((41.45, 0.972, 0.065), (39.76, 0.960, 0.076), (38.37, 0.946, 0.088)),
        "QRNN3D": ((42.28, 0.973, 0.061), (40.23, 0.961, 0.072), (38.57, 0.945, 0.087)),
        **_MODELS,
    },
}
"""By table and row: (PSNR, SSIM, SAM) at each of `SIGMAS`."""

SECONDS = {"DU-full": 13.12, "DEQ-full": 25.03, "DU-fast": 4.70, "DEQ-fast": 7.45}
"""Table III."""

ABOUT = (
    "The paper's own numbers (arXiv:2203.15901): ICVL, 50 scenes of 1300 x 1300 x 31 that it does not name. Another data set, "
    "another scaling and another SSIM: they cannot be compared with the numbers above, only their order can."
)
