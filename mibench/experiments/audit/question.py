"""What the user of an audit wants to know, and what was found of the model before anything is done."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mibench.core import Access
from mibench.models.imported.opened import Opened
from mibench.models.imported.sources import ModelSource
from mibench.models.imported.ways import NOTHING, Found, Given
from mibench.plugins.registry import Choice
from mibench.runs import Run

__all__ = ["Asked", "Prepared"]


@dataclass(frozen=True)
class Asked:
    """What the user wants to know, about what.

    Args:
        source: The model.
        private: A folder of folders: the people it was trained on.
        public: Other people's pictures, which an attacker could have.
        access: What the attacker is granted; the strongest that the model gives if absent.
        given: What the model wants, as far as the user says.
        minutes: For everything; no limit if absent.
        queries: Of the model: what attacks and floors ask of it; of a server everything. No limit if absent.
        method: Attacks, comma-separated; those of the menu that fit the budget if absent.
        prior: What all attacks search; each one's own if absent.
        identities: Only the first so many are attacked; as many as fit the time if absent.
        image_size: Side of the pictures that are attacked and judged.
        evaluators: Evaluation models, comma-separated.
        defenses: Trained on the same data, to say what they would buy.
        defense_model: The architecture that they are trained with.
        settings: Of `attack`, `prior`, `evaluator`, `training` and `data`.
        faces: The pictures are photographs of faces.
        seed: Of attacks and priors.
        precision: fp32 or bf16.
    """

    source: ModelSource
    private: Path
    public: Path | None = None
    access: Access | None = None
    given: Given = NOTHING
    minutes: float | None = None
    queries: int | None = None
    method: str | None = None
    prior: str | None = None
    identities: int | None = None
    image_size: int | None = None
    evaluators: str | None = None
    defenses: tuple[str, ...] = ()
    defense_model: str | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    faces: bool = False
    seed: int = 0
    precision: str = "fp32"


@dataclass(frozen=True)
class Prepared:
    """A model that has been found to answer as it should.

    Args:
        asked: What the user wants to know.
        opened: The model.
        found: What it wants.
        data: The private pictures and the public ones.
        target: The run that brings it in.
        access: What the attacker is granted.
    """

    asked: Asked
    opened: Opened
    found: Found
    data: Choice
    target: Run
    access: Access

    @property
    def paid(self) -> bool:
        """Whether every picture that is shown costs: the model is a server."""
        return self.asked.source.endpoint is not None

    @property
    def lines(self) -> list[str]:
        """What was found out, for the user."""
        people, public = self.data.shape.classes, self.data.shape.public
        lines = [self.asked.source.told, *self.found.told]
        lines.append(f"gives {self.found.grants.words} access; attacked with {self.access.words} access")
        lines.append(
            f"{people} people; {public} public pictures for the attacker; attacked and judged at "
            f"{self.data.shape.image_shape[1]} px"
        )
        return lines
