"""Attack a network of your own: any classifier whose forward pass can be cut before its last layer."""

import torch
from torch import Tensor, nn

from mibench.core import Access, AttackContext, Oracle
from mibench.plugins import registry


class Yours(nn.Module):
    """Images in [0, 1], (n, 3, 32, 32), to logits; an attack asks for `features` and `head`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.head = nn.Linear(256, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.trunk(2 * x - 1)  # your normalisation

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


torch.manual_seed(0)
network = Yours(classes=5).eval()  # here: load_state_dict(torch.load("yours.pt", weights_only=True))
people = {"identities": 5, "distractors": 5, "public_images": 100, "image_size": 32}  # only public images are used
data = registry.configure("data", "digiface", settings=people).plugin.load()
prior = registry.configure("priors", "dcgan").plugin.build((3, 32, 32), 5, data.public).eval().requires_grad_(False)
attack = registry.configure("attacks", "ppa", "quick", {"steps": 10, "pool": 100}).plugin

oracle = Oracle(network, Access.WHITE_BOX, num_classes=5, budget=1000)
found = attack(oracle, prior, torch.arange(5), seed=0, work=AttackContext(public=data.public))
agrees = network(found.images).argmax(1) == found.labels
print(f"{tuple(found.images.shape)} images, the target agrees on {agrees.float().mean():.0%}")
print(f"asked for {int(oracle.queries.max()) + oracle.shared_queries} images per identity")
