"""What a user should know of a plan before its work begins: where it does something else than the words may suggest."""

from collections.abc import Iterable, Iterator, Sequence

from mibench import zoo
from mibench.evaluation import faces
from mibench.experiments.experiment import Experiment, Targets
from mibench.plugins import capabilities, registry
from mibench.runs import Run, lineage
from mibench.runtime.absent import STATED
from mibench.stages import train_verifier

__all__ = ["remarks"]


def remarks(experiments: Iterable[Experiment], runs: Sequence[Run]) -> list[str]:
    """One line each: what is not here; what the zoo has ready; priors of another domain, and those that stand in for
    one; recipes that a setting leaves alone; why no verifier judges.

    Args:
        experiments: What was asked.
        runs: What was planned for it.
    """
    lines = [
        *_stated(runs),
        *_from_zoo(runs),
        *_priors(runs),
        *(line for one in experiments for line in _recipes(one, runs)),
        *_verifiers(runs),
    ]
    return list(dict.fromkeys(lines))


def _stated(runs: Sequence[Run]) -> Iterator[str]:
    whole = lineage(runs)
    data = {
        str(one.spec["dataset"]["name"])
        for one in whole
        if one.spec.get("dataset", {}).get("settings", {}).get("content") == STATED
    }
    priors = {
        one.name for one in whole if one.kind == "priors" and one.spec["prior"]["settings"].get("weights") == STATED
    }
    if data or priors:
        yield (
            f"not on this machine, so counted as published: {', '.join(sorted(data | priors))}; the runs will have "
            "other ids than these"
        )


def _from_zoo(runs: Sequence[Run]) -> Iterator[str]:
    ready = [one.label for one in lineage(runs) if zoo.origin(one) and not one.done]
    if ready:
        yield (
            f"ready in the zoo, so not trained here: {', '.join(sorted(ready))} (--no-zoo trains all of it; mibench "
            "zoo list says how each was made)"
        )


def _priors(runs: Sequence[Run]) -> Iterator[str]:
    inversions = [one for run in runs for one in [run, *run.ancestors()] if one.kind == "inversions"]
    for inversion in inversions:
        prior = inversion.prior
        card = registry.card("attacks", inversion.spec["attack"]["name"]) if prior else {}
        if prior is None or card.get("role", "attack") != "attack":
            continue
        name, data = prior.spec["prior"]["name"], inversion.target.spec["dataset"]["name"]
        own = card["prior"]
        if not capabilities.in_domain(name, data):
            other = registry.card("priors", name).get("elsewhere")
            instead = f"; --prior {other} learns from the public images of '{data}'" if other else ""
            yield (
                f"the prior {name} draws {capabilities.domain(name)}, not what '{data}' shows: whatever it "
                f"reconstructs is nobody of these data{instead}"
            )
        elif registry.card("priors", own).get("elsewhere") == name and not capabilities.in_domain(own, data):
            yield (
                f"the prior is {name}, learnt on the public images of '{data}'; {own} draws "
                f"{capabilities.domain(own)} and is used elsewhere only with --prior {own}"
            )


def _recipes(experiment: Experiment, runs: Sequence[Run]) -> Iterator[str]:
    """Who gives the target fewer epochs may think that all networks get them."""
    if not isinstance(experiment.subject, Targets) or experiment.goal == "target":
        return
    asked, kinds = experiment.evaluators, {one.kind for run in runs for one in [run, *run.ancestors()]}
    recipes = {"evaluator": asked.training} | ({"verifier": asked.verifier_training} if "verifiers" in kinds else {})
    given = [key for one in experiment.subject.each for key in one.training]
    keep = {owner: [key for key in dict.fromkeys(given) if key not in own] for owner, own in recipes.items()}
    if not any(keep.values()):
        return
    shown = ", ".join(f"training.{key}" for key in dict.fromkeys(given))
    how = " ".join(f"--set {owner}.{key}=..." for owner, keys in keep.items() for key in keys)
    who = " and ".join({"evaluator": "evaluation models", "verifier": "verifiers"}[one] for one in keep if keep[one])
    yield f"{shown} is of targets alone; {who} keep their own recipe: change it with {how}"


def _verifiers(runs: Sequence[Run]) -> Iterator[str]:
    """Without a verifier the headline rests on the evaluation model alone."""
    for run in runs:
        if run.kind == "scores" and "verifiers" not in {*run.parents, *run.spec}:
            data = run.inversion.target.inputs["dataset"]
            why = train_verifier.missing(registry.configure("data", data["name"], settings=data["settings"]))
            if run.inputs.get("photographs"):
                why = "; ".join(f"{one.name}: {one.why}; {one.how}" for one in faces.present()[1])
            if why:
                yield f"no verifier judges: {why}; the own-ball gate of the evaluation model stands in"
