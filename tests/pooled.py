"""A small grey classifier whose weights are known in closed form, as a network and behind a server."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mibench.data.decode import decode_all
from mibench.data.folder import people_of
from mibench.runtime.progress import Silent

PEOPLE = 8


class Pooled(nn.Module):
    """Minus the squared distance of an image's 7 x 7 means to each person's: weights in closed form."""

    def __init__(self, people: int = PEOPLE) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.out = nn.Linear(49, people)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 1:
            raise RuntimeError("expected 1 channel")
        return self.out(self.pool(x).flatten(1))


def pooled(private: Path) -> Pooled:
    """The one that knows the people of a folder, as 28 px in [-1, 1]."""
    people = people_of(private, "private")
    files = [file for own in people.values() for file in own]
    x, _ = decode_all(files, 28, False, Silent())
    z = nn.AdaptiveAvgPool2d(7)((x / 255 - 0.5) / 0.5).flatten(1)
    labels = torch.tensor([label for label, own in enumerate(people.values()) for _ in own])
    means = torch.stack([z[labels == person].mean(dim=0) for person in range(len(people))])
    net = Pooled(len(people))
    net.out.weight.data, net.out.bias.data = 2 * means, -means.square().sum(dim=1)
    return net.eval().requires_grad_(False)


def answering(net: nn.Module) -> Callable[[Tensor], dict[str, Any]]:
    """What a server with it answers: probabilities of every image, whatever its size and colours."""

    def answer(x: Tensor) -> dict[str, Any]:
        grey = nn.functional.interpolate(x.mean(dim=1, keepdim=True), (28, 28), mode="bilinear", antialias=True)
        return {"scores": net((grey - 0.5) / 0.5).softmax(dim=1).tolist()}

    return answer
