"""From a target's scores to an embedding model's class logits: C2FMI's map M and what it reads.

References:
    | C2FMI: Corse-to-Fine Black-Box Model Inversion Attack (Ye et al., TDSC 2023)
    | https://github.com/MiLabHITSZ/2022YeC2FMI, models/predict2feature.py and utils/train_inv.py at commit ca5142a
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from mibench.core import AttackContext, Split
from mibench.core.steps import Generators
from mibench.models.base import Classifier
from mibench.runtime.rng import Noise, generator, seed_of

__all__ = ["certain", "fit", "network", "vector"]


def vector(p: Float[Tensor, "n k"], top: int = 0) -> Float[Tensor, "n k"]:
    """Scores as the map reads them: v = max(log p, -1000) + 50, minus min(v) where that is below 0, over its length.

    Only the `top` largest p are told (0: all). What is not told is 0 and does not count for min(v).
    """
    told = p.topk(min(top or p.shape[1], p.shape[1]), dim=1)
    v = told.values.log().clamp(min=-1000.0) + 50.0
    v = v - v.amin(dim=1, keepdim=True).clamp(max=0.0)
    return F.normalize(torch.zeros_like(p).scatter(1, told.indices, v), dim=1)


def certain(y: Int64[Tensor, " n"], classes: int, noise: Noise) -> Float[Tensor, "n k"]:
    """Scores of an image that is y beyond doubt: 1 at y and 1e-18 |N(0, 1)| elsewhere, over their length.

    The small ones matter: to `vector` they are about 8 beside y's 50, as small scores of real images are; zeros would
    be 0 beside 1000, which the map has never seen.
    """
    return F.normalize((1e-18 * noise.normal(classes).abs()).scatter(1, y[:, None], 1.0), dim=1)


def network(classes: int, width: int, outputs: int) -> nn.Sequential:
    """M, unfitted: two hidden layers, LeakyReLU .2, dropout .25."""
    with torch.random.fork_rng(devices=[]):  # its first weights are drawn again when it is fitted
        return nn.Sequential(
            nn.Linear(classes, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.25),
            nn.Linear(width, outputs),
        )


def fit(
    inverse: nn.Sequential,
    embedding: Classifier,
    v: Float[Tensor, "n k"],
    public: Split,
    epochs: int,
    batch: int,
    seed: int,
    work: AttackContext,
) -> dict[str, Tensor]:
    """M's weights after min |M(v) - E(x)|^2 over the public images x, by Adam 1e-3, x .8 every tenth of the epochs.

    Features are kept rather than logits: E may know ten thousand people.

    Args:
        inverse: M; left fitted, in training mode.
        embedding: E, frozen.
        v: What the target's scores of each public image look like; see `vector`.
        public: The images.
        epochs: Passes over them.
        batch: Images in each step.
        seed: Decides M's first weights, dropout and the order of the images.
        work: How many images E is shown at once, and where a killed training goes on.
    """
    with torch.no_grad():
        features = torch.cat([embedding.features(part).float() for part in public.parts(work.batch, v.device)])
    with torch.random.fork_rng(devices=[v.device] if v.device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(seed_of(seed, "c2f-map"))
        for layer in inverse:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        inverse.train().requires_grad_(True)
        optimizer = torch.optim.Adam(inverse.parameters(), lr=1e-3)
        for epoch in work.steps(epochs, inverse, optimizer, Generators()):
            optimizer.param_groups[0]["lr"] = 1e-3 * 0.8 ** (10 * epoch // epochs)
            order = torch.randperm(len(v), generator=generator(seed, "c2f-map", epoch)).to(v.device)
            for index in order.split(batch):
                with torch.no_grad():
                    wanted = embedding.head(features[index]).float()
                loss = F.mse_loss(inverse(v[index]).float(), wanted)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
    return {name: value.detach().clone() for name, value in inverse.state_dict().items()}
