"""Randomness that does not depend on who else is in the batch.

A draw is a pure function of (seed, key, purpose, position): a counter-based generator instead of a stateful one.
So a batch of 1,500 latents gets exactly the numbers that 1,500 runs of one latent would get, a resumed run needs no
saved generator state, and every device gives the same integers.

References:
    | Parallel random numbers: as easy as 1, 2, 3 (Salmon et al., 2011), the idea
    | https://doi.org/10.1145/2063384.2063405
    | Fast splittable pseudorandom number generators (Steele, Lea and Flood, 2014), the mixing function
    | https://doi.org/10.1145/2660193.2660195
"""

import hashlib
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["Noise", "content_keys", "generator", "kept_globals", "seed_of", "seeded_globals"]


def seed_of(*parts: object) -> int:
    """Seed hashed from what it seeds: the first 63 bits of sha256 over the parts' texts.

    Every part is written with its type, so `1` and `"1"` give different seeds.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1


def generator(*parts: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded by `seed_of(*parts)`, for code that is batch-coupled anyway (training)."""
    return torch.Generator(device=device).manual_seed(seed_of(*parts))


@contextmanager
def kept_globals() -> Iterator[None]:
    """Around code that seeds torch's global generators and draws from them: afterwards they are as they were before."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def seeded_globals(*parts: object) -> Iterator[list[str]]:
    """Around code that should not draw from the global generators of Python, numpy and torch, but may do so.

    They are seeded by `seed_of(*parts)`, so that what forgot the rule is at least the same bits when it is run again
    from its start (not when it goes on from a checkpoint: what was drawn before is then missing). Afterwards they are
    as they were before.

    Yields:
        A list that is filled at the end: those that were used, of `random`, `numpy` and `torch`.
    """
    used: list[str] = []
    python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        seed = seed_of(*parts)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        begin = _global_states()
        try:
            yield used
        finally:
            used += [name for name, state in _global_states().items() if state != begin[name]]
            random.setstate(python)
            np.random.set_state(of_numpy)


def _global_states() -> dict[str, object]:
    """Of every global generator, something that changes when it is drawn from."""
    of_numpy: Any = np.random.get_state()
    name, words, *rest = of_numpy
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    states = [state.numpy().tobytes() for state in (torch.get_rng_state(), *devices)]
    return {"random": random.getstate(), "numpy": (name, words.tobytes(), *rest), "torch": states}


def _signed(value: int) -> int:
    """The int64 with the same 64 bits as an unsigned constant."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def _shift(x: Int64[Tensor, "*s"], bits: int) -> Int64[Tensor, "*s"]:
    """Logical right shift: torch shifts int64 arithmetically, so the copies of the sign bit are masked off."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Int64[Tensor, "*s"]) -> Int64[Tensor, "*s"]:
    """The splitmix64 finaliser: a bijection of 64-bit words in which every input bit moves half of the output bits."""
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def content_keys(x: Float[Tensor, "n c h w"]) -> Int64[Tensor, " n"]:
    """A key per image that depends on its pixels, rounded to 8 bits, and on nothing else.

    sum_i mix(i) round(255 x_i) modulo 2^64, mixed: a multiply-shift hash.
    """
    pixels = (x.float() * 255.0).round().long().flatten(1)
    weights = _mix(torch.arange(1, pixels.shape[1] + 1, device=x.device) * _GAMMA) | 1
    return _mix((pixels * weights).sum(dim=1))


@dataclass(frozen=True)
class Noise:
    """Independent streams of random numbers, one per row of `keys`.

    Args:
        seed: The run's seed.
        keys: One key per sample, for example `label * restarts + restart`; equal keys give equal draws.
        purpose: What the draws are for; `noise.of("view", 3)` is independent of `noise.of("view", 4)`.
    """

    seed: int
    keys: Int64[Tensor, " n"]
    purpose: int = 0

    def of(self, *purpose: object) -> "Noise":
        """The same samples, another independent purpose (a step, a view, a name)."""
        return Noise(self.seed, self.keys, seed_of(self.purpose, *purpose))

    def fixed(self) -> "Noise":
        """The same samples and seed without any purpose: draws that stay the same for the whole run."""
        return Noise(self.seed, self.keys)

    def rows(self, index: Int64[Tensor, " m"]) -> "Noise":
        """The streams of some of the samples."""
        return Noise(self.seed, self.keys[index], self.purpose)

    def bits(self, count: int) -> Int64[Tensor, "n count"]:
        """Raw 64-bit words: mix(mix(mix(seed, purpose) + key) + position)."""
        base = _signed(seed_of(self.seed, self.purpose) << 1)
        stream = _mix(_mix(self.keys * _GAMMA + base) + base)
        position = torch.arange(1, count + 1, device=self.keys.device)
        return _mix(stream[:, None] + position * _GAMMA)

    def uniform(self, *shape: int) -> Float[Tensor, "n *shape"]:
        """U[0, 1) with 24 random bits, the precision of float32."""
        words = _shift(self.bits(math.prod(shape)), 40)
        return (words.to(torch.float32) * 2.0**-24).reshape(-1, *shape)

    def normal(self, *shape: int) -> Float[Tensor, "n *shape"]:
        """N(0, 1) by the Box-Muller transform: sqrt(-2 ln u) cos(2 pi v), one word for each pair (u, v).

        The word's upper 32 bits give u in (0, 1], so |x| <= 6.7; the lower 32 bits give v.
        """
        words = self.bits(math.prod(shape))
        u = (_shift(words, 32).to(torch.float64) + 1.0) * 2.0**-32
        v = (words & 0xFFFFFFFF).to(torch.float64) * 2.0**-32
        draw = torch.sqrt(-2.0 * torch.log(u)) * torch.cos(2.0 * math.pi * v)
        return draw.to(torch.float32).reshape(-1, *shape)
