"""What a prior offers to a search, in words that cards, attacks and refusals share."""

from typing import Literal

from mibench.runtime.errors import UserError

__all__ = ["CAPABILITIES", "Capabilities", "Lacks"]

CAPABILITIES = {
    "gradients": "a generator that gradients flow through",
    "unconditional": "an unconditional generator, because one pool of samples serves all identities",
    "conditional": "a prior that is told whom to draw",
    "critic": "a prior with a critic",
    "blocks": "a generator it can enter between its blocks",
    "diffusion": "a diffusion model as prior",
    "flow": "a flow-matching model as prior",
    "pixels": "a prior whose latents are the pixels themselves",
    "images": "the public images themselves as prior, not a generator",
}
"""What an attack's card may require of a prior, and how a refusal says it. A latent space by name may be required too:
`space w`."""


class Lacks(UserError):
    """Something is asked of a plug-in that it does not offer; `plugins.capabilities` adds who does.

    Args:
        text: The refusal, without the names of others.
        kind: The kind of plug-in to choose another of.
        capability: What the other must offer.
    """

    def __init__(self, text: str, kind: Literal["priors", "attacks", "models"], capability: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.capability = capability


class Capabilities:
    """What a prior offers to a search: known from its card before anything is trained, and a property of every prior.

    A card says what differs from the values here: `critic`, `differentiable`, `conditional`, `diffusion`, `flow`,
    `spaces`, and `enterable` for `blocks`.
    """

    critic_kind: Literal["none", "wgan", "kp1"] = "none"
    """'wgan': critic(x) is a score, higher is more real; 'kp1': the log-sum-exp of K real-class logits."""
    differentiable: bool = True
    """Whether gradients flow from images to latents."""
    conditional: bool = False
    """Whether `decode` draws an image of a given identity and so needs `y`."""
    diffusion: bool = False
    """Whether it denoises: `mibench.priors.diffusion.Diffusion`."""
    flow: bool = False
    """Whether it carries noise to images along a velocity field: `mibench.priors.flow.FlowPrior`."""
    spaces: tuple[str, ...] = ("z",)
    """Latent spaces by name, the one that `decode` takes first."""
    blocks: int = 0
    """At how many places a search may enter the generator; 0 is none. Place k lies between block k - 1 and block k."""

    def offers(self) -> frozenset[str]:
        """The keys of `CAPABILITIES` that hold, and `space NAME` for each latent space."""
        holds = {
            "gradients": self.differentiable,
            "unconditional": self.differentiable and not self.conditional,
            "conditional": self.conditional,
            "critic": self.critic_kind != "none",
            "blocks": self.differentiable and self.blocks > 0,
            "diffusion": self.diffusion,
            "flow": self.flow,
            "pixels": self.spaces == ("pixels",),
            "images": self.spaces == ("images",),
        }
        return frozenset([*(word for word, held in holds.items() if held), *(f"space {name}" for name in self.spaces)])
