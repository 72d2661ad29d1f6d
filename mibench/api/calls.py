"""The calls: each plans the runs that the command of its name plans, and executes what is not done yet."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from mibench import report, runs
from mibench.api.objects import Inversion, LearntPrior, Target
from mibench.core import Dataset
from mibench.evaluation import evaluate as evaluation
from mibench.evaluation.model import EvaluationModel
from mibench.evaluation.score import Score
from mibench.evaluation.verifier import Verifier
from mibench.experiments.experiment import Experiment, Finished, Targets, Trained
from mibench.experiments.plan import plan
from mibench.experiments.reading import prior_preset, read_attackers, read_evaluators, read_target
from mibench.models.base import Classifier
from mibench.plugins import registry
from mibench.report import Frames
from mibench.runs import Run, executor
from mibench.runs.store import folder_of
from mibench.runtime import engine
from mibench.runtime.errors import UserError, unknown
from mibench.runtime.progress import Reporter, Silent
from mibench.stages import artifacts, execute
from mibench.stages.score import evaluation_model, verifier
from mibench.stats.intervals import Interval
from mibench.zoo import Shelf

__all__ = [
    *("Settings", "evaluate", "invert", "load_results", "load_target", "score"),
    *("train_evaluators", "train_prior", "train_target", "train_verifiers"),
]

Settings = Mapping[str, Mapping[str, Any]]
"""Settings by owner: `data`, `training`, `evaluator`, `verifier`, `attack`, `prior`, or a defense's name."""


def train_target(
    defense: str = "none",
    model: str | None = None,
    dataset: str = "digiface",
    *,
    pretrained: str | None = None,
    recipe: str | None = None,
    weights: str | Path | None = None,
    classes: str | None = None,
    seed: int = 0,
    settings: Settings | None = None,
    zoo: bool = False,
    results: str | Path = "results",
    device: str = "auto",
    precision: str = "auto",
    progress: bool = True,
) -> Target:
    """Train a target, or find it trained: the command `mibench train-target`.

    Args:
        defense: A defense's name, or several that are stacked: `re+nls`.
        model: An architecture; see `mibench list models`, or any of torchvision's classifiers. If absent `cnn`, or
            what the weights are recognised as.
        dataset: A data set's name.
        pretrained: `none`, `imagenet` or `public`; what the defense or the recipe needs if absent.
        recipe: A published training recipe by its name, `ppa-2022`, `kedmi-2021` or `midre-2025`; mibench's own if
            absent.
        weights: A file of weights that somebody else trained, which is brought in instead; also below
            MIBENCH_DATA/weights. Nothing in it is executed.
        classes: Of the weights: a file of their outputs' names, or `matched` for the order that fits best; the data
            set's own order, verified, if absent.
        seed: Everything random is derived from it.
        settings: Of `data`, `training`, and of each defense by its name.
        zoo: Take it from the zoo where it is ready there, instead of training it.
        results: The folder of all runs.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; several GPUs for one training are `cuda:0,1`.
        precision: `auto`, `fp32` or `bf16`.
        progress: Draw bars on stderr.

    Raises:
        UserError: For an unknown name or setting, a value out of range, defenses that cannot be combined, a recipe that
            was not published for the architecture, a loss that stops being finite, or weights that are not of these
            people.
    """
    if weights is not None:
        trains = {"defense": defense != "none", "pretrained": pretrained, "recipe": recipe, "seed": seed}
        experiment = _brought(weights, model, dataset, classes, trains, settings, results, device, precision, progress)
        return Target(_execute(experiment, results, device, progress)[-1])
    if classes is not None:
        raise UserError("classes belong to weights: give the file of weights, or leave them out")
    given = _owned(settings, ("data", "training", *defense.split("+")))
    experiment = Experiment(
        "target",
        registry.configure("data", dataset, settings=given["data"]),
        Targets((read_target(model or "cnn", defense, given, pretrained, recipe),), (seed,)),
        seed=seed,
        precision=_precision(device, precision),
    )
    return Target(_execute(experiment, results, device, progress, Shelf() if zoo else None)[-1])


def _brought(
    weights: str | Path,
    model: str | None,
    dataset: str,
    classes: str | None,
    trains: Mapping[str, object],
    settings: Settings | None,
    results: str | Path,
    device: str,
    precision: str,
    progress: bool,
) -> Experiment:
    """Weights of somebody else as a target; what was found out about them is said."""
    from mibench.experiments.bringing import bring
    from mibench.runtime.terminal import say

    for name, value in trains.items():
        if value:
            raise UserError(f"{name} changes how a network is trained, and weights are trained: leave one of them out")
    data = registry.configure("data", dataset, settings=_owned(settings, ("data",))["data"])
    at = _precision(device, precision)
    run, lines = bring(Path(weights), model, data, Path(results), classes=classes, precision=at)
    if progress:
        say(*lines, to_stderr=True)
    return Experiment("target", data, Trained(planned=(run,)), precision=at)


def load_target(name: str, seed: int | None = None) -> Classifier:
    """A trained target of the zoo, ready to be asked; nothing is trained, drawn or written.

    Args:
        name: As in `mibench zoo list`: `none`, `re`, `re@1`.
        seed: Of its training; the lowest there is if absent.

    Returns:
        The network as it is served: images (n, c, h, w) in [0, 1] to logits (n, classes); frozen, in eval mode.

    Raises:
        UserError: If the zoo has no such target, or its file is damaged.
    """
    entry = Shelf().find(name, seed)
    if entry.run.kind != "targets":
        raise UserError(f"{entry.reference} in the zoo is no target but one of the {entry.run.kind}")
    entry.check()
    return artifacts.load_target(entry.run)


def train_evaluators(
    target: Target,
    names: Sequence[str] | None = None,
    *,
    settings: Settings | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: bool = True,
) -> tuple[EvaluationModel, ...]:
    """Train the evaluation models of a target's data set, or find them trained; the first gives the headline.

    Args:
        target: Whose reconstructions they will judge; none may be of its family.
        names: Architectures of at least two families; two of other families than the target's if absent.
        settings: Of the `evaluator`: what differs from their training recipe.
        device: As in `train_target`.
        precision: As in `train_target`.
        progress: Draw bars on stderr.

    Raises:
        UserError: If two families are not there, or one is the target's.
    """
    made = _judges(target, names, settings, "evaluators", device, precision, progress)
    at = engine.resolve(device, precision)
    return tuple(evaluation_model(run, target.data, at) for run in made)


def train_verifiers(
    target: Target,
    *,
    settings: Settings | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: bool = True,
) -> tuple[Verifier, ...]:
    """Train the verifiers of a target's data set, or find them trained; the first is the headline's gate.

    They learn people who are neither private nor public nor distractors; none where the data have too few of these.

    Args:
        target: Whose reconstructions they will judge; none is of its family.
        settings: Of the `verifier`: what differs from their training recipe.
        device: As in `train_target`.
        precision: As in `train_target`.
        progress: Draw bars on stderr.

    Raises:
        UserError: For an unknown setting.
    """
    made = _judges(target, None, settings, "verifiers", device, precision, progress)
    at = engine.resolve(device, precision)
    prepared = (verifier(run, target.data, at) for run in made)
    return tuple(one for one in prepared if one is not None)


def _judges(
    target: Target,
    names: Sequence[str] | None,
    settings: Settings | None,
    kind: str,
    device: str,
    precision: str,
    progress: bool,
) -> list[Run]:
    """The finished runs of one kind among those that will judge a target's reconstructions."""
    experiment = Experiment(
        "training",
        None,
        Trained((target.path.name,)),
        evaluators=read_evaluators(",".join(names) if names else None, _owned(settings, ("evaluator", "verifier"))),
        precision=_precision(device, precision),
    )
    return _do([run for run in plan(experiment, target.run.root) if run.kind == kind], device, progress)


def train_prior(
    name: str = "wgan_gp",
    dataset: str = "digiface",
    *,
    target: Target | None = None,
    preset: str = "quick",
    seed: int = 0,
    settings: Settings | None = None,
    results: str | Path = "results",
    device: str = "auto",
    precision: str = "auto",
    progress: bool = True,
) -> LearntPrior:
    """Learn an image prior on the public images of a data set, or find it learnt: `mibench train-prior`.

    Args:
        name: A prior's name.
        dataset: Whose public images; a target's own if a target is given.
        target: What the prior learns from besides, where it must (`kedmi`, `plg`, `tacgan`).
        preset: `quick`, `paper` or `default`.
        seed: Everything random is derived from it.
        settings: Of the `prior`, and of `data` where no target is given.
        results: The folder of all runs; a target's own if a target is given.
        device: As in `train_target`.
        precision: As in `train_target`.
        progress: Draw bars on stderr.

    Raises:
        UserError: For an unknown name or setting, or a prior that needs a target where none is given.
    """
    given = _owned(settings, ("prior",) if target else ("prior", "data"))
    recipe = registry.configure("priors", name, prior_preset(name, preset), given["prior"])
    if target is None and recipe.plugin.target_access is not None:
        raise UserError(f"the prior {name} learns from a target too: train_prior('{name}', target=...)")
    if target is None:
        data = registry.configure("data", dataset, settings=given["data"])
    else:
        asked = target.run.inputs["dataset"]
        data = registry.configure("data", asked["name"], settings=asked["settings"])
    experiment = Experiment(
        "prior",
        data,
        Trained((target.path.name,) if target else ()),
        prior=recipe,
        seed=seed,
        precision=_precision(device, precision),
    )
    run = _execute(experiment, target.run.root if target else results, device, progress)[-1]
    return LearntPrior(run, target.data if target else artifacts.open_dataset(run.inputs["dataset"]))


def invert(
    target: Target,
    attack: str = "ppa",
    *,
    prior: str | LearntPrior | None = None,
    preset: str = "quick",
    identities: int | None = None,
    budget: int | None = None,
    isolate: bool = False,
    seed: int = 0,
    settings: Settings | None = None,
    zoo: bool = True,
    device: str = "auto",
    precision: str = "auto",
    progress: bool = True,
) -> Inversion:
    """Attack a target and keep the reconstructions, or find them made; scores nothing: `mibench invert`.

    Args:
        target: What is attacked.
        attack: An attack's name, perhaps wrapped: `ppa+eot`.
        prior: A prior's name, or one that was learnt with the same seed; the attack's own if absent.
        preset: `quick`, `paper` or `legacy`; the prior's too, unless it was given learnt.
        identities: Only the first so many are attacked; all if absent.
        budget: Most images the target is asked for one identity, shared ones included; unlimited if absent.
        isolate: Run a black-box or label-only attack in a sealed process, the target behind a pipe; the same bytes.
        seed: Everything random is derived from it.
        settings: Of the `attack` (of a wrapper as `"eot.copies"`) and of the `prior`.
        zoo: Take networks that are missing from the zoo where they are ready there.
        device: As in `train_target`.
        precision: As in `train_target`.
        progress: Draw bars on stderr.

    Raises:
        UserError: For an unknown name or setting, a prior that lacks what the attack requires or that learnt from more
            of the target than the attack may ask for, or a search whose loss stops being finite.
    """
    given = _owned(settings, ("attack", "prior"))
    if isinstance(prior, LearntPrior):
        if prior.run.spec["seed"] != seed:
            raise UserError(f"the prior was learnt with seed {prior.run.spec['seed']}, the attack has seed {seed}")
        given["prior"] = {**prior.run.spec["prior"]["settings"], **given["prior"]}
        prior = str(prior.run.spec["prior"]["name"])
    if "," in attack or attack == "all":
        raise UserError(f"invert makes one attack at a time, got '{attack}'; call it once for each")
    experiment = Experiment(
        "inversions",
        None,
        Trained((target.path.name,)),
        read_attackers(attack, preset, given["attack"], prior, given["prior"]),
        identities=identities,
        budget=budget,
        isolate=isolate,
        seed=seed,
        precision=_precision(device, precision),
    )
    return Inversion(_execute(experiment, target.run.root, device, progress, Shelf() if zoo else None)[-1], target)


def score(
    inversion: Inversion,
    evaluators: Sequence[str] | None = None,
    *,
    settings: Settings | None = None,
    zoo: bool = True,
    device: str = "auto",
    precision: str = "auto",
    progress: bool = True,
) -> Score:
    """Judge an inversion and keep the score with the runs, for reports and `load_results`: `mibench score`.

    Evaluation models that are missing are trained first.

    Args:
        inversion: What is judged.
        evaluators: Architectures of at least two families; two of other families than the target's if absent.
        settings: Of the `evaluator`: what differs from the evaluation models' training recipe.
        zoo: Take networks that are missing from the zoo where they are ready there.
        device: As in `train_target`.
        precision: As in `train_target`.
        progress: Draw bars on stderr.

    Raises:
        UserError: If two families are not there, or one is the target's.
    """
    given = _owned(settings, ("evaluator", "verifier"))
    experiment = Experiment(
        "scores",
        None,
        Finished((inversion.path.name,)),
        evaluators=read_evaluators(",".join(evaluators) if evaluators else None, given),
        precision=_precision(device, precision),
    )
    run = _execute(experiment, inversion.run.root, device, progress, Shelf() if zoo else None)[-1]
    return Score.from_json(run.read("scores.json"))


def evaluate(
    images: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    target: Target | Classifier,
    evaluators: Sequence[EvaluationModel],
    data: Dataset | None = None,
    *,
    verifiers: Sequence[Verifier] = (),
    device: str = "auto",
    precision: str = "auto",
) -> Score:
    """Judge images of any program, without files.

    Args:
        images: Reconstructions as uint8, or in [0, 1]: these are rounded to 8 bits first, as saving would.
        labels: Whom each image claims to show: places in `data.classes`.
        target: What was attacked: what `train_target` returned, or a `Classifier` with `features`, `head` and `serve`.
        evaluators: What `train_evaluators` returned, or `EvaluationModel.of` a network; the headline first.
        data: The target's data set; that of the `Target` if absent.
        verifiers: What `train_verifiers` returned, or `Verifier.of` a network, the headline's first; without one the
            own-ball gate stands in.
        device: As in `train_target`.
        precision: As in `train_target`.

    Returns:
        Rates in [0, 1] and distances, each mean with its 95% interval clustered by identity; the values of each image.

    Raises:
        UserError: For no evaluation model, two of one name, images of another shape than the data's, labels that are
            no class, a network that answers NaN or infinity, or a target without data.
        ValueError: Not one label for each image, or no image.
    """
    at = engine.resolve(device, precision)
    if not isinstance(target, Target):
        if data is None:
            raise UserError("evaluate needs data=... where the target is a network: its private and held-out images")
        return evaluation.evaluate(images, labels, target, evaluators, data, at, verifiers=verifiers)
    natural = Interval(**target.metrics["natural_accuracy"])
    known = data or target.data
    return evaluation.evaluate(
        images, labels, target.model, evaluators, known, at, verifiers=verifiers, natural_accuracy=natural
    )


def load_results(results: str | Path = "results") -> Frames:
    """All finished scores of a results folder as tidy data frames; nothing is printed or written.

    Args:
        results: The folder of all runs. Runs that cannot be read are named in `errors` of what is returned.

    Returns:
        `scores` (one row a score), `metrics` (one row a score, metric and evaluation model), `reconstructions` (one row
        an image), `differences` and `tradeoff`. Rates lie in [0, 1]; `x_low` and `x_high` bound x with 95%; `x@resnet`
        is what resnet measured. Columns are described in dictionary.csv of a report.

    Raises:
        UserError: If there is no such folder.
    """
    return report.frames(results)


def _owned(settings: Settings | None, owners: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings of every owner, empty where none are given.

    Raises:
        UserError: If something else owns some.
    """
    given = {name: dict(own) for name, own in (settings or {}).items()}
    for name in given:
        if name not in owners:
            raise unknown("owner of settings", name, owners)
    return {name: {} for name in owners} | given


def _precision(device: str, precision: str) -> str:
    return engine.resolve(device, precision).precision


def _execute(
    experiment: Experiment, results: str | Path, device: str, progress: bool, zoo: Shelf | None = None
) -> list[Run]:
    """Plan an experiment and do what is not done, one run after the other: a notebook, or a script without the guard
    that multiprocessing wants, cannot start worker processes. Threads, and so all bits, are those of the commands."""
    return _do(plan(experiment, folder_of(results), zoo), device, progress)


def _do(planned: list[Run], device: str, progress: bool) -> list[Run]:
    """The runs, finished."""
    with ExitStack() as stack:
        reporter: Reporter = Silent()
        if progress:
            from mibench.runtime.terminal import Terminal

            reporter = stack.enter_context(Terminal())
        for run in executor.pending(planned):
            execute([run], engine.device_name(device), reporter)
    return [runs.find(run.root, run.path.name) for run in planned]
