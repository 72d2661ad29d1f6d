"""The laws of a metric: what it declares, and that the number is what is declared.

The laws of the number itself are tried on metrics of other packages: functions

    name(x, labels, references, reference_labels) -> one value per image

of images in [0, 1] and of real images of the same people, by the name of their declaration.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mibench.metrics import Direction, Metric, Need, Per, declared
from mibench.metrics.outside import bounds
from mibench.plugins import contract, registry
from mibench.runtime.errors import UserError
from mibench.testing.laws import Broken, DoesNotApply, Law, Trial, law
from mibench.testing.state import changed

__all__ = ["LAWS", "MetricTrial"]

LAWS: list[Law["MetricTrial"]] = []
"""Every law of a metric, in the order in which they build on one another."""

ROUNDING = 1e-4


class MetricTrial(Trial):
    """A metric on trial.

    Args:
        name: The plug-in's: a file that declares one number or more.
        settings: None: a metric has none.

    Raises:
        UserError: If settings are given.
    """

    kind = "metric"

    def __init__(self, name: str, settings: Mapping[str, Any] | None = None) -> None:
        if settings:
            raise UserError(f"the metric {name} has no settings; it was given {', '.join(settings)}")
        super().__init__(name)

    @cached_property
    def module(self) -> ModuleType:
        """Imported."""
        return importlib.import_module(registry.module_of("metrics", self.name))

    @cached_property
    def read(self) -> list[Metric]:
        """What is read off the file."""
        return [one for one in declared().values() if one.module == self.name]

    @property
    def functions(self) -> dict[str, tuple[Metric, Callable[..., Tensor]]]:
        """Declared name -> declaration and function, of those that are functions of images and references.

        Raises:
            DoesNotApply: If there is none.
        """
        declared = {one.name: (one, getattr(self.module, one.name, None)) for one in self.read if one.per is Per.IMAGE}
        known: dict[str, tuple[Metric, Callable[..., Tensor]]] = {
            name: (one, call) for name, (one, call) in declared.items() if inspect.isfunction(call) and _fits(call)
        }
        if not known:
            raise DoesNotApply("it is no function of images and references; mibench calls it where its inputs are")
        return known

    @cached_property
    def world(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Twelve images of three people, four of them copies of a reference; and nine references."""
        draw = torch.Generator().manual_seed(0)
        references, owners = torch.rand(9, 3, 8, 8, generator=draw), torch.arange(9) % 3
        labels = torch.arange(12) % 3
        near = (references[:4] + 0.05 * torch.rand(4, 3, 8, 8, generator=draw)).clamp(0, 1)
        x = torch.cat([references[:4], near, torch.rand(4, 3, 8, 8, generator=draw)])
        return x, torch.cat([owners[:4], owners[:4], labels[8:]]), references, owners


def _fits(call: Callable[..., Tensor]) -> bool:
    return list(inspect.signature(call).parameters)[1:4] == ["labels", "references", "reference_labels"]


@law(LAWS)
def card(trial: MetricTrial) -> None:
    """The card says what to cite"""
    contract.check_card("metrics", trial.name)
    for key in ("title", "authors", "venue", "year", "link"):
        if not trial.card.get(key):
            raise Broken(f"'{key}' is empty", "say whom to cite")


@law(LAWS)
def declaration(trial: MetricTrial) -> None:
    """What is read off the file is what the module declares, and it is complete"""
    made = [vars(one) for one in getattr(trial.module, "METRICS", ())]
    if not made or [vars(one) | {"module": ""} for one in trial.read] != made:
        raise Broken(
            f"read off the file: {[one.name for one in trial.read]}; declared: {[one['name'] for one in made]}",
            "write METRICS = (Metric(...),) with literal arguments at the top of the file",
        )
    for one in trial.read:
        top, bottom = one.heading("resnet")
        if not one.needs or not one.range or not bottom or "{" in top + bottom:
            raise Broken(f"{one.name} lacks needs, a range, or its header's second line", "fill them in")
        if one.summary.endswith(".") or "\n" in one.summary:
            raise Broken(f"the summary of {one.name} is no sentence without a full stop", "shorten it")


@law(LAWS, "declaration")
def values(trial: MetricTrial) -> None:
    """It gives one finite number per image, in the declared range"""
    x, labels, references, owners = trial.world
    for name, (one, call) in trial.functions.items():
        said = call(x, labels, references, owners)
        if not isinstance(said, Tensor) or said.shape != (len(x),):
            raise Broken(
                f"{name} gives {getattr(said, 'shape', type(said).__name__)} of {len(x)} images",
                "return one value for each image",
            )
        if not said.double().isfinite().all():
            raise Broken(f"{name} gives NaN or infinity", "cap it, as a copy's peak signal-to-noise ratio is")
        low, high = bounds(one)
        if float(said.min()) < low or float(said.max()) > high:
            raise Broken(
                f"{name} lies in [{float(said.min()):.4g}, {float(said.max()):.4g}], declared {one.range}",
                "mend the range, the unit (a share lies in [0, 1]) or the number",
            )


@law(LAWS, "values")
def known_values(trial: MetricTrial) -> None:
    """examples() gives cases whose values are known in closed form, and they are met"""
    functions = trial.functions
    examples = getattr(trial.module, "examples", None)
    if examples is None or not (cases := list(examples())):
        raise Broken(
            "there are no examples",
            "define examples() -> [(name, (x, labels, references, reference_labels), expected), ...]",
        )
    if left := functions.keys() - {name for name, _, _ in cases}:
        raise Broken(f"there is no example of {', '.join(sorted(left))}", "add one that can be worked out by hand")
    for name, given, expected in cases:
        values = functions[name][1](*given)
        wanted = torch.as_tensor(expected, dtype=torch.float64)
        if values.shape != wanted.shape or float((values.double() - wanted).abs().max()) > 1e-3:
            raise Broken(
                f"{name} gives {values.tolist()}, the example says {wanted.tolist()}", "find out which is wrong"
            )


@law(LAWS, "values")
def order(trial: MetricTrial) -> None:
    """The order of images and of references does not matter"""
    x, labels, references, owners = trial.world
    draw = torch.Generator().manual_seed(1)
    rows, others = torch.randperm(len(x), generator=draw), torch.randperm(len(references), generator=draw)
    for name, (_, call) in trial.functions.items():
        straight, mixed = (
            call(x, labels, references, owners)[rows],
            call(x[rows], labels[rows], references[others], owners[others]),
        )
        if (worst := float((straight.double() - mixed.double()).abs().max())) > ROUNDING:
            raise Broken(
                f"{name} changes by {worst:.3g} when images and references are mixed",
                "go by labels, never by the place",
            )


@law(LAWS, "order")
def company(trial: MetricTrial) -> None:
    """An image gets what it would get alone"""
    x, labels, references, owners = trial.world
    for name, (_, call) in trial.functions.items():
        together = call(x, labels, references, owners)
        alone = torch.cat([call(x[i : i + 1], labels[i : i + 1], references, owners) for i in range(len(x))])
        if (worst := float((together.double() - alone.double()).abs().max())) > ROUNDING:
            raise Broken(
                f"{name} of an image changes by {worst:.3g} with the others in the batch",
                "use no statistics of the batch; or declare per=Per.SET",
            )


@law(LAWS, "values")
def own_references(trial: MetricTrial) -> None:
    """Only references of the image's own person count"""
    x, labels, references, owners = trial.world
    other = torch.where((owners == 0)[:, None, None, None], references, 1 - references)
    mine = labels == 0
    for name, (one, call) in trial.functions.items():
        if not {Need.TRAIN, Need.HELDOUT} & set(one.needs):
            continue
        before, after = (call(x, labels, shown, owners)[mine] for shown in (references, other))
        if not torch.equal(before, after):
            raise Broken(f"{name} of person 0 changes with the references of others", "compare by reference_labels")


@law(LAWS, "values")
def direction(trial: MetricTrial) -> None:
    """A copy of a real image of the person leaks more than noise, by the declared direction"""
    x, labels, references, owners = trial.world
    for name, (one, call) in trial.functions.items():
        if one.direction is Direction.NEITHER:
            continue
        values = call(x, labels, references, owners).double() * one.direction.factor
        if not float(values[:4].mean()) > float(values[8:].mean()):
            raise Broken(
                f"{name} says {one.direction.words}, but copies have {float(values[:4].mean()):.4g} and noise "
                f"{float(values[8:].mean()):.4g} (times {one.direction.factor})",
                "turn Direction round, or the number",
            )


@law(LAWS, "values")
def refusals(trial: MetricTrial) -> None:
    """Pixels outside [0, 1] and a label without a reference are refused, not measured"""
    x, labels, references, owners = trial.world
    for name, (one, call) in trial.functions.items():
        wrong = {"pixels up to 255": (255 * x, labels, references, owners)}
        if {Need.TRAIN, Need.HELDOUT} & set(one.needs):
            wrong["a person without a reference"] = (x, labels.clone().fill_(7), references, owners)
        for what, given in wrong.items():
            try:
                call(*given)
            except Exception:
                continue
            raise Broken(f"{name} measures {what}", "refuse it: mibench.metrics.inputs.images checks pixels")


@law(LAWS, "values")
def global_state(trial: MetricTrial) -> None:
    """It leaves the process, and what it is given, as it was"""
    given = trial.world
    copies, calls = [one.clone() for one in given], [call for _, call in trial.functions.values()]
    if others := changed(lambda: [call(*given) for call in calls]):
        raise Broken(f"it changed {', '.join(others)}", "a metric is a pure function")
    if any(not torch.equal(one, copy) for one, copy in zip(given, copies, strict=True)):
        raise Broken("it changed the tensors that it was given", "a metric is a pure function")
