"""What cards declare that plug-ins offer and require, and the one refusal of what does not fit.

Whoever is registered takes part, also through entry points: nothing here knows a plug-in by name.
"""

from typing import Literal

from mibench.core import Attack, Capabilities, Lacks
from mibench.plugins import registry
from mibench.runtime.errors import UserError

__all__ = ["declared", "offering", "require"]


def declared(prior: str, blocks: int | None = None) -> Capabilities:
    """What a prior's card says that it offers; nothing is built or imported.

    Args:
        prior: Its name.
        blocks: How many blocks it has (`PriorTrainer.blocks_of`); without that 1 stands for any.
    """
    card = registry.card("priors", prior)
    offer = Capabilities()
    offer.critic_kind = card.get("critic", "none")
    offer.differentiable = card.get("differentiable", True)
    offer.conditional = card.get("conditional", False)
    offer.diffusion = card.get("diffusion", False)
    offer.spaces = tuple(card.get("spaces", ("z",)))
    offer.blocks = (1 if card.get("enterable", False) else 0) if blocks is None else blocks
    return offer


def offering(kind: Literal["priors", "attacks"], capability: str) -> list[str]:
    """Every registered plug-in that offers this; of attacks, those that may use the target's gradients."""
    if kind == "priors":
        return [name for name in registry.names("priors") if capability in declared(name).offers()]
    return [name for name in registry.attacks("attack") if registry.card("attacks", name)["access"] == "white_box"]


def require(attack: Attack, prior: Capabilities) -> None:
    """Refuse a prior, or an attack in a wrapper, that lacks what the cards require.

    Called with what the card declares before anything is trained, and with the real prior when it is searched.

    Raises:
        UserError: What is missing, and who has it.
    """
    try:
        attack.require(prior)
    except Lacks as error:
        others = offering(error.kind, error.capability)
        how = {"priors": "choose with --prior", "attacks": "wrap"}[error.kind]
        offers = f"{how} one that has: {', '.join(others)}" if others else "no plug-in that is installed has it"
        raise UserError(f"{error}; {offers}") from None
