"""The state that a process shares: whoever changes it changes what others compute."""

import locale
import os
import random
import warnings
from collections.abc import Callable
from typing import Any

import jaxtyping
import numpy as np
import torch

__all__ = ["changed"]


def _words(state: Any) -> tuple[bytes, str]:
    """Of numpy's global generator, its words, and where in them it is."""
    return state[1].tobytes(), str(state[2:])


def state() -> dict[str, Any]:
    """What a plug-in must leave as it was."""
    return {
        "torch's global generator": torch.get_rng_state().numpy().tobytes(),
        "numpy's global generator": _words(np.random.get_state()),
        "random's global generator": random.getstate(),
        "torch's gradient mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "torch's default type and device": (torch.get_default_dtype(), str(torch.get_default_device())),
        "torch's number of threads": torch.get_num_threads(),
        "torch's deterministic mode": (
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
        ),
        "torch's precision of products": (torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")),
        "the working directory": os.getcwd(),
        "environment variables": dict(os.environ),
        "the warning filters": list(warnings.filters),
        "the locale": locale.setlocale(locale.LC_ALL),
    }


def changed(call: Callable[[], object]) -> list[str]:
    """What is no longer as it was after a call.

    Type checks that a test run has put on mibench are left out meanwhile: beartype draws from random's generator.
    """
    checked = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        before = state()
        call()
        after = state()
    finally:
        jaxtyping.config.update("jaxtyping_disable", checked)
    return [name for name, value in after.items() if value != before[name]]
