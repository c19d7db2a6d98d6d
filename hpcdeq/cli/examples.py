"""The examples at the end of each verb's help."""

from __future__ import annotations

_TRAIN = "train data.train=scenes.zarr run=runs/first"
_DENOISE = "denoise noisy.zarr --model runs/first/model --out denoised.zarr"

# Of a verb's full name; the commands without `hpcdeq`.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "": ("doctor", "demo", "ingest raw/ --archive scenes.zarr", _TRAIN, _DENOISE),
    "ingest": (
        "ingest raw/ --archive scenes.zarr",
        "ingest a.mat b.mat --archive scenes.zarr --variable cube --scale 4095",
    ),
    "info": ("info scenes.zarr", "info scenes.zarr scene1 --json"),
    "validate": ("validate scenes.zarr",),
    "split": (
        "split scenes.zarr --val 2 --test 10",
        "split --train train.zarr --val val.zarr --test test.zarr",
    ),
    "dictionary": ("dictionary scenes.zarr --out dictionary.safetensors",),
    "train": (
        _TRAIN,
        "train --config configs/deq-fast.yaml data.train=scenes.zarr noise.sigma=30 run=runs/deq",
        f"{_TRAIN} --show",
    ),
    "export": ("export runs/first --out model",),
    "degrade": (
        "degrade clean.zarr --out noisy.zarr --sigma 50",
        "degrade clean.zarr --out noisy.zarr --case mixture",
    ),
    "denoise": (_DENOISE, "denoise noisy.zarr --model du-fast --out denoised.zarr"),
    "status": ("status denoised.zarr", "status denoised.zarr --watch --html run.html"),
    "verify": ("verify denoised.zarr",),
    "repair": ("repair denoised.zarr",),
    "cancel": ("cancel denoised.zarr", "cancel runs/first"),
    "evaluate": (
        "evaluate clean.zarr --model du-fast --sigma 30,50,70",
        "evaluate clean.zarr --denoised denoised.zarr --noisy noisy.zarr --html report.html",
    ),
    "tables": (
        "tables --archive test.zarr --model du-fast --model deq-fast --methods noisy,omp --out study",
    ),
    "figures": ("figures --archive test.zarr --model du-fast --out study",),
    "ablate": ("ablate configs/studies/fast.yaml data.train=train.zarr data.val=val.zarr",),
    "scale": ("scale scaling", "scale scaling --scenes 10000 --deadline-hours 8"),
    "doctor": ("doctor", "doctor --json"),
    "demo": ("demo", "demo --out /tmp/demo"),
    "submit train": (f"submit {_TRAIN} --profile my-cluster --nodes 2 --time 4:00:00",),
    "submit denoise": (f"submit {_DENOISE} --nodes 16 --time 2:00:00",),
    "submit tables": (
        "submit tables --archive test.zarr --model du-fast --out study --nodes 4 --time 2:00:00",
    ),
    "submit scale train": (
        "submit scale train data.train=train.zarr --sizes 1x1,1x4,2x4 --gpus-per-node 4 --time 60",
    ),
    "submit scale denoise": (
        "submit scale denoise noisy.zarr --model du-fast --sizes 1x1,1x4 --gpus-per-node 4 --time 60",
    ),
}


def examples(verb: str) -> str:
    """Return what the help of a verb ends with; ``\\b`` keeps the lines as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  hpcdeq {line}" for line in EXAMPLES[verb])
