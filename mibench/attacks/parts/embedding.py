"""A network of the attacker's own that tells public people apart: what its features see, no target need be asked for.

References:
    | Discriminative Unsupervised Feature Learning with Exemplar Convolutional Neural Networks
      (Dosovitskiy et al., 2014), every image a class of its own where public people are unknown
    | https://arxiv.org/abs/1406.6909
"""

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from mibench.attacks.parts.surrogates import Distillation, train_surrogates
from mibench.core import AttackContext, Oracle, Split, augment
from mibench.models.base import Classifier
from mibench.runtime.rng import Noise

__all__ = ["public_classes", "train_embedding"]


def public_classes(public: Split, people: int) -> tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, " n"]]:
    """Images and classes 0, 1, ...: those of at most `people` public people, or as many single images where people are
    not known (labels below 0) or there is but one.
    """
    names = public.labels.unique()
    if names[0] >= 0 and 2 <= len(names) < len(public):
        chosen = public.labels <= names[min(people, len(names)) - 1]
        own = public.take(chosen.nonzero()[:, 0])
        return own.images, torch.searchsorted(names, own.labels)
    images = public.images[:people]
    return images, torch.arange(len(images), device=names.device)


def train_embedding(
    name: str,
    architecture: str,
    images: UInt8[Tensor, "n c h w"],
    classes: Int64[Tensor, " n"],
    epochs: int,
    lr: float,
    seed: int,
    oracle: Oracle,
    work: AttackContext,
) -> Classifier:
    """A frozen classifier of these images, kept under `name`; SGD, batches of 64, half of the views augmented.

    Args:
        name: Of the attack, for its checkpoint.
        architecture: One of `mibench.models.names()`.
        images: As stored.
        classes: Who is on them, from 0.
        epochs: Passes over them.
        lr: The first learning rate, falling along a cosine; momentum .9, weight decay 5e-4.
        seed: Decides the first weights, the order of the images and the views.
        oracle: Not asked; its counts follow checkpoints.
        work: Where the weights are kept.
    """
    lesson = Distillation(lr, 0.9, 5e-4, 64, epochs, "cosine")
    one_hot = F.one_hot(classes).float()
    return train_surrogates(name, (architecture,), images, one_hot, lesson, seed, oracle, work, _strong)[0]


def _strong(x: Float[Tensor, "n c h w"], noise: Noise) -> Float[Tensor, "n c h w"]:
    """What a person may look like in another photograph."""
    x = augment.random_resized_crop(x, noise.of("crop"), (0.5, 1.0), (0.8, 1.25), mirror=0.5)
    return augment.colour_jitter(x, noise.of("jitter"), 0.4, 0.4, 0.2)
