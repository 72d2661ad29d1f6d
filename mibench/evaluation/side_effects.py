"""What a defense changes besides natural accuracy: robustness, calibration, the gradients an attacker sees."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from mibench.core import Split
from mibench.core.losses import IDENTITY
from mibench.metrics import gradients
from mibench.metrics.calibration import calibration
from mibench.metrics.robustness import adversarial_accuracy, spread
from mibench.models.base import Classifier
from mibench.models.served import Served
from mibench.runtime.rng import Noise

__all__ = ["PROBED", "STEPS", "side_effects"]

PROBED = 200
"""How many held-out images the attacks of `side_effects` try."""

STEPS = 10
"""How many steps each of these attacks takes."""


def side_effects(
    model: Classifier, logits: Float[Tensor, "n k"], heldout: Split, probed: int = PROBED, steps: int = STEPS
) -> dict[str, Any]:
    """Adversarial accuracy, calibration, gradient norms, and how far served scores are from summing to 1.

    Scores are what is served; gradients are those of the network itself, which a white-box attacker holds, in float32.

    Args:
        model: Deployed, in eval mode, on the device of the labels.
        logits: Of the held-out images, as served.
        heldout: Private images that the model has not seen.
        probed: How many of them are attacked, at most.
        steps: Of each attack.
    """
    # A shaper's scores are judged before a softmax makes them sum to 1.
    scores = logits.exp() if isinstance(model, Served) else logits.softmax(dim=1)
    confidence = calibration(logits.softmax(dim=1), heldout.labels)
    place = spread(heldout.labels, probed)
    x, y = heldout.at(place), heldout.labels[place]
    other = gradients.others(y, logits.shape[1], Noise(0, place).of("other class"))

    def white_box(images: Tensor) -> Tensor:
        return model.head(model.features(images)).float()

    robust = adversarial_accuracy(white_box, x, y, steps=steps)
    norms = {
        name: gradients.gradient_norms(white_box, x, other, IDENTITY[name]) for name in ("cross_entropy", "max_margin")
    }
    return {
        "adversarial_accuracy": {str(eps): rate._asdict() for eps, rate in robust.items()},
        "confidence": confidence.confidence,
        "ece": confidence.ece,
        "gradient_norm": {name: gradients.summary(norm)._asdict() for name, norm in norms.items()},
        "served_sum_error": float((scores.double().sum(dim=1) - 1.0).abs().max()),
    }
