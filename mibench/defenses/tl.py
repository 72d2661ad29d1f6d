"""TL-DMI: the first layers keep what public images taught them; only the others see private images.

References:
    | Model Inversion Robustness: Can Transfer Learning Help? (Ho et al., CVPR 2024)
    | https://arxiv.org/abs/2405.05588
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from mibench.core import Defense, Split, Step
from mibench.models.base import Classifier
from mibench.runtime.errors import UserError

__all__ = ["FrozenPrefix"]

CARD = {
    "summary": "freeze the first layers of a network that public images have trained (TL-DMI)",
    "title": "Model Inversion Robustness: Can Transfer Learning Help?",
    "authors": "Ho, Koh, Chandrasegaran, Nguyen and Cheung",
    "venue": "CVPR",
    "year": 2024,
    "link": "https://arxiv.org/abs/2405.05588",
    "strength": "freeze",
    "grid": [0.02, 0.1, 0.3, 1.0],
    "adaptive": {},
    "zero": {"freeze": 0.0},
}

PRESETS = {"paper": {"freeze": 0.2, "bn": "train"}}
"""8 of the 13 convolutions of VGG16-BN; the authors' loop leaves frozen batch norms in train mode."""


@dataclass(frozen=True)
class FrozenPrefix(Defense):
    """Layers are frozen in order while together they hold at most `freeze` of the trunk's parameters.

    Args:
        freeze: Share of the trunk's parameters, in [0, 1]. 0 freezes nothing, 1 all but the head. A share and not a
            count of layers, so that it means the same in every architecture; most of a small net's parameters are in
            its last layers, so there a small share is most of the depth.
        bn: What frozen batch norms normalise with: eval (statistics of the public images) or train (of the private
            batch, updating the statistics: they leak into the prefix, as in the authors' code).

    Source: the authors' code, https://github.com/hosytuyen/TL-DMI (commit e3495df).
    Differs: the authors count modules, and by a misspelt attribute leave the stem of IR nets to train.
    """

    start: ClassVar[Literal["any", "public"]] = "public"

    freeze: float = 0.2
    bn: Literal["eval", "train"] = "eval"

    def __post_init__(self) -> None:
        if not 0 <= self.freeze <= 1:
            raise UserError(f"tl: freeze must lie in [0, 1], got {self.freeze}")

    def surgery(self, model: nn.Module) -> nn.Module:
        """Freeze; a layer is a module with parameters of its own, in the order in which the modules were made."""
        assert isinstance(model, Classifier)
        allowed = self.freeze * sum(parameter.numel() for parameter in model.trunk.parameters())
        for layer in model.trunk.modules():
            own = list(layer.parameters(recurse=False))
            allowed -= sum(parameter.numel() for parameter in own)
            if allowed < 0:
                break
            for parameter in own:
                parameter.requires_grad_(False)
        return model

    def epoch(self, step: Step) -> None:
        """Hold frozen batch norms in eval mode, which `model.train()` has just ended."""
        if self.bn == "train":
            return
        for layer in step.model.modules():
            own = list(layer.parameters(recurse=False))
            frozen = own and not any(parameter.requires_grad for parameter in own)
            if frozen and isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.eval()

    def finish(self, step: Step, train: Split) -> dict[str, float]:
        """How many parameters saw private images."""
        learnt = (parameter.numel() for parameter in step.model.parameters() if parameter.requires_grad)
        return {"trainable_parameters": float(sum(learnt))}
