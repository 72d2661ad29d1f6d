"""Features and images that tests of metrics draw: the same on every machine, for ever."""

import torch
from torch import Tensor

from mibench.runtime.rng import Noise


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int = 0) -> Tensor:
    """Uniform numbers in [0, 1), as images have."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def fixed(seed: int, *shape: int) -> Tensor:
    """Normal numbers whose bits depend on no version of torch: what golden values are made of."""
    return Noise(seed, torch.arange(shape[0])).normal(*shape[1:]).double()


def pair(n: int = 120, m: int = 90, d: int = 16) -> tuple[Tensor, Tensor]:
    """Real and generated features that overlap in part."""
    return fixed(1, n, d), 0.9 * fixed(2, m, d) + 0.3


def people(n: int = 30, m: int = 40, d: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reconstructions with labels, references with labels."""
    return fixed(3, n, d), torch.arange(n) % 5, fixed(4, m, d), torch.arange(m) % 5


def faces(n: int, m: int, d: int = 5, classes: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same of unequal numbers for each label."""
    y, z = (torch.arange(n) * 7) % classes, (torch.arange(m) * 3) % classes
    return normal(n, d), y, normal(m, d, seed=1), z


def brute_force(f: Tensor, y: Tensor, g: Tensor, z: Tensor, skip_self: bool = False) -> Tensor:
    """KNN distance from its definition, pair by pair."""
    nearest = []
    for i in range(len(f)):
        distances = [
            float(((f[i] - g[j]) ** 2).sum()) for j in range(len(g)) if z[j] == y[i] and not (skip_self and i == j)
        ]
        nearest.append(min(distances))
    return torch.tensor(nearest, dtype=torch.float64)
