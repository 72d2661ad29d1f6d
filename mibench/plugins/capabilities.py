"""What cards declare that plug-ins offer and require, and the one refusal of what does not fit.

Whoever is registered takes part, also through entry points: nothing here knows a plug-in by name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal

from mibench.core import Attack, Capabilities, Lacks
from mibench.plugins import registry
from mibench.runtime.errors import UserError

__all__ = ["declared", "domain", "in_domain", "naming_others", "offering", "require", "require_of_architecture"]

Kind = Literal["priors", "attacks", "models"]
HOW = {"priors": "choose with --prior", "attacks": "wrap", "models": "choose with --model"}


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


def domain(prior: str) -> str:
    """What a prior draws, by its card: `public`, what the data's own public images show (whoever says nothing); `none`,
    nothing in particular; else the name of the one data set that it was made for."""
    return str(registry.card("priors", prior).get("domain", "public"))


def in_domain(prior: str, data: str) -> bool:
    """Whether a prior draws what a data set shows.

    A prior of another domain can fool a target, and even the models that judge, but shows nobody of the data.

    Args:
        prior: Its name.
        data: The data set's name.
    """
    return domain(prior) in ("public", "none", data)


def offering(kind: Kind, capability: str) -> list[str]:
    """Everybody who offers this: priors; attacks that may use the target's gradients; architectures of own families."""
    if kind == "priors":
        return [name for name in registry.names("priors") if capability in declared(name).offers()]
    if kind == "models":
        families = registry.cards("models").values()
        return [name for card in families if capability in card.get("offers", ()) for name in card["architectures"]]
    return [name for name in registry.attacks("attack") if registry.card("attacks", name)["access"] == "white_box"]


@contextmanager
def naming_others() -> Iterator[None]:
    """Whatever is refused inside for what it lacks is refused with the names of those who have it.

    Raises:
        UserError: In the place of `Lacks`.
    """
    try:
        yield
    except Lacks as error:
        others = offering(error.kind, error.capability)
        offers = f"{HOW[error.kind]} one that has: {', '.join(others)}" if others else "nothing installed has it"
        raise UserError(f"{error}; {offers}") from None


def require(attack: Attack, prior: Capabilities) -> None:
    """Refuse a prior, or an attack in a wrapper, that lacks what the cards require.

    Called with what the card declares before anything is trained, and with the real prior when it is searched.

    Raises:
        UserError: What is missing, and who has it.
    """
    with naming_others():
        attack.require(prior)


WORDS = {
    "skips": "skip connections that can be weakened",
    "convolutions": "an architecture that begins with plain convolutions",
}
"""What a defense's card may require of a family of architectures."""


def require_of_architecture(defense: str, family: str) -> None:
    """Refuse a defense whose card requires what a family of architectures does not offer, or a package that is missing.

    torchvision's families have no cards of their own: one that is written here too (resnet, vgg) offers what that card
    says, the others what surgery will find.

    Raises:
        UserError: What is missing, and which architectures have it, or how to install it.
    """
    card = registry.card("defenses", defense)
    for package, extra in card.get("packages", {}).items():
        if find_spec(package) is None:
            raise UserError(f"{defense} needs the package {package}; install it with: pip install 'mibench[{extra}]'")
    if family not in registry.names("models"):
        return
    offers = registry.card("models", family).get("offers", ())
    for word in card.get("requires", ()):
        if word not in offers:
            with naming_others():
                raise Lacks(f"{defense} needs {WORDS[word]}; this architecture has none", "models", word)
