"""What the calls return: finished runs that read themselves when they are asked."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from mibench.core import Dataset, Prior, to_float
from mibench.models.base import Classifier
from mibench.runs import Run
from mibench.runtime.display import Shown
from mibench.stages import artifacts

__all__ = ["Inversion", "LearntPrior", "Target"]


@dataclass(frozen=True, repr=False)
class Finished(Shown):
    """A finished run.

    Args:
        run: Where it lies and what was asked.
    """

    run: Run

    @property
    def id(self) -> str:
        """What `mibench show` and `mibench cite` take."""
        return self.run.id

    @property
    def path(self) -> Path:
        """Its directory."""
        return self.run.path

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Everything that was measured: its metrics.json. Rates lie in [0, 1], times are seconds."""
        return self.run.read("metrics.json")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}: {value}' for name, value in self.summary().items())})"


@dataclass(frozen=True, repr=False)
class Target(Finished):
    """A trained classifier that is to be attacked; what `train_target` returns."""

    @cached_property
    def data(self) -> Dataset:
        """The data set that it was trained on.

        Raises:
            UserError: If its images have changed since.
        """
        return artifacts.dataset(self.run)

    @cached_property
    def model(self) -> Classifier:
        """The network as it is served: images (n, c, h, w) in [0, 1] to logits (n, classes); frozen, in eval mode."""
        return artifacts.load_classifier(self.run, self.data)

    @property
    def natural_accuracy(self) -> float:
        """The share of the held-out images of the private people that it names rightly, in [0, 1]."""
        return float(self.metrics["natural_accuracy"]["value"])

    def summary(self) -> dict[str, str]:
        spec = self.run.spec
        return {
            "model": str(spec["model"]),
            "defense": " + ".join(one["name"] for one in spec["defenses"]) or "none",
            "data set": str(spec["dataset"]["name"]),
            "natural accuracy": f"{100 * self.natural_accuracy:.1f}%",
            "run": str(self.path),
        }


@dataclass(frozen=True, repr=False)
class LearntPrior(Finished):
    """An image prior; what `train_prior` returns.

    Args:
        run: Where it lies and what was asked.
        data: The data set whose public images it learnt.
    """

    data: Dataset

    @cached_property
    def prior(self) -> Prior:
        """The prior itself: `sample`, `decode(z)` to images in [0, 1]; frozen, in eval mode."""
        return artifacts.load_prior(self.run, self.data)

    def picture(self) -> Path:
        return self.path / "samples.png"

    def summary(self) -> dict[str, str]:
        return {"prior": str(self.run.spec["prior"]["name"]), "public images of": self.data.name, "run": str(self.path)}


@dataclass(frozen=True, repr=False)
class Inversion(Finished):
    """What an attack reconstructed; what `invert` returns.

    Args:
        run: Where it lies and what was asked.
        target: What was attacked.
    """

    target: Target

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        return artifacts.read_tensors(self.path / "images.safetensors", "reconstructions")[0]

    @cached_property
    def images(self) -> Float[Tensor, "n c h w"]:
        """The reconstructions as they are stored and scored: multiples of 1/255 in [0, 1], grouped by identity."""
        return to_float(self._tensors["images"])

    @cached_property
    def labels(self) -> Int64[Tensor, " n"]:
        """Whom each image is to show: a place in `target.data.classes`."""
        return self._tensors["labels"]

    def picture(self) -> Path:
        return self.path / "grid.png"

    def summary(self) -> dict[str, str]:
        people = len(self.labels.unique())
        return {
            "attack": str(self.run.spec["attack"]["name"]),
            "target": self.target.path.name,
            "reconstructions": f"{len(self.labels)} of {people} identities",
            "run": str(self.path),
        }
