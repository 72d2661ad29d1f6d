"""LOMMA's two changes to an attack: a loss on raw logits with a feature regulariser, and distilled extra models.

References:
    | Re-thinking Model Inversion Attacks Against Deep Neural Networks (Nguyen et al., CVPR 2023)
    | https://arxiv.org/abs/2304.01669
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mibench.attacks.parts.surrogates import Distillation, train_surrogates
from mibench.core import Attack, AttackContext, Oracle, Prior
from mibench.core.losses import cross_entropy, feature_distance, nll, realism
from mibench.models.base import Classifier
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise, seed_of

__all__ = ["Lomma", "Study"]


@dataclass(frozen=True)
class Study:
    """What the attacker learnt from the public images: extra models, and how the target's features usually lie."""

    students: list[Classifier]
    mean: Float[Tensor, " d"]
    std: Float[Tensor, " d"]


@dataclass(frozen=True)
class Lomma(Attack):
    """realism(G(z)) + identity * (mean over target and students of -l_y + preg_weight * mean_j (phi_j - mu_j)^2).

    phi are the target's penultimate features, mu their mean over the public images. Students learn the target's
    softmax on the public images. Without `logit_loss` the identity loss is the mean cross-entropy (L_aug); without
    `augmented` the target alone is asked (L_logit); without both it is the attack that LOMMA changes.

    Args:
        images: Reconstructions per identity, all of them returned.
        steps: Gradient steps.
        lr: Learning rate.
        identity: Weight of the identity loss.
        realism: Weight of the critic.
        clip: The latent's box.
        logit_loss: Use the logit loss with its regulariser; False is the cross-entropy.
        augmented: Invert the students too.
        preg: mean (the authors' code, and the expectation of the other) or sample: the features are drawn to a new
            draw from N(mu, sigma^2) at each step (the paper's text).
        preg_weight: Weight of the regulariser.
        students: Architectures of the students.
        pretrained: They start from ImageNet weights (the paper), which must be in torch's cache or downloadable.
        student_epochs: Passes over the public images.
        student_lr: SGD's learning rate; momentum .9, weight decay 1e-4, halved every 20 epochs.
        student_batch: Images a step.

    Source: section 4 of the paper; values of the authors' code (commit ed4b6b8 of
    https://github.com/sutd-visual-computing-group/Re-thinking_MI).
    Differs: mu is the mean over all public images (theirs over 5,050); torchvision's students see
    images resized to 224 pixels.
    """

    images: int = 5
    steps: int = 2400
    lr: float = 0.02
    identity: float = 100.0
    realism: float = 1.0
    clip: float = 1.0
    logit_loss: bool = True
    augmented: bool = True
    preg: Literal["mean", "sample"] = "sample"
    preg_weight: float = 1.0
    students: tuple[str, ...] = ("efficientnet_b0", "efficientnet_b1", "efficientnet_b2")
    pretrained: bool = False
    student_epochs: int = 20
    student_lr: float = 0.01
    student_batch: int = 64

    called: ClassVar[str] = "lomma"
    """The attack's name, for errors and checkpoints."""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            UserError: Naming the settings and what is allowed.
        """
        if self.images < 1 or self.student_batch < 2 or self.clip <= 0:
            raise UserError(f"{self.called}: images must be at least 1, student_batch at least 2, clip above 0")

    @property
    def asks(self) -> bool:
        """Whether the target must be shown the public images."""
        return self.logit_loss or (self.augmented and len(self.students) > 0)

    def study(self, oracle: Oracle, seed: int, work: AttackContext) -> Study | None:
        """Show the target the public images once, then teach the students; None where neither is used."""
        if not self.asks:
            return None
        public = work.images(self.called)

        @torch.no_grad()
        def answers() -> dict[str, Tensor]:
            asked = (oracle.answers(x, None) for x in public.parts(work.batch, oracle.device))
            logits, features = zip(*asked, strict=True)
            std, mean = torch.std_mean(torch.cat(features), dim=0)
            return {"logits": torch.cat(logits), "mean": mean, "std": std}

        known = work.once(f"{self.called}-answers", oracle, answers)
        lesson = Distillation(self.student_lr, batch=self.student_batch, epochs=self.student_epochs)
        students = train_surrogates(
            self.called,
            self.students if self.augmented else (),
            public.images,
            known["logits"].softmax(dim=1),
            lesson,
            seed_of(seed, "lomma"),
            oracle,
            work,
            pretrained=self.pretrained,
        )
        return Study(students, known["mean"], known["std"])

    def losses(
        self,
        oracle: Oracle,
        prior: Prior,
        known: Study | None,
        x: Float[Tensor, "n c h w"],
        y: Int64[Tensor, " n"],
        noise: Noise,
    ) -> Float[Tensor, " n"]:
        """The whole loss of each image; the target is asked once for each, the students are the attacker's own."""
        students = known.students if known is not None else []
        objective = nll if self.logit_loss else cross_entropy

        def term(logits: Tensor, features: Tensor, y: Tensor) -> Tensor:
            value = objective(logits, y) / (1 + len(students))
            if not self.logit_loss or known is None:
                return value
            wanted = known.mean[None]
            if self.preg == "sample":
                drawn = known.mean + known.std * noise.of("preg").normal(len(known.mean))
                wanted = drawn.repeat(len(features) // len(drawn), 1)  # one draw for all views of an image
            return value + self.preg_weight * feature_distance(features, wanted)

        identity = oracle.loss(x, y, term, noise)
        for student in students:
            identity = identity + objective(student(x).float(), y) / (1 + len(students))
        return self.realism * realism(prior, x) + self.identity * identity
