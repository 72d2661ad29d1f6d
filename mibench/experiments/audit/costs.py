"""What a run asks of the user's model, in closed form, from what was planned and declared."""

import math

from mibench.core import Cost
from mibench.experiments.audit.question import Prepared
from mibench.experiments.experiment import Attacker, Experiment
from mibench.experiments.plan import cost_of, plan
from mibench.plugins import registry
from mibench.plugins.registry import Choice
from mibench.runs import Run, lineage
from mibench.stages import imported
from mibench.stages.import_target import HELDOUT_SHOWN, LEARNT_SHOWN

__all__ = ["asks", "attacker_of", "cost", "everything", "images_of"]


def attacker_of(inversion: Run) -> Attacker:
    """The attack of a planned inversion, with the prior that it searches."""
    attack, prior = inversion.spec["attack"], inversion.prior
    assert prior is not None
    searched = prior.spec["prior"]
    return Attacker(
        registry.configure("attacks", attack["name"], settings=attack["settings"]),
        registry.configure("priors", searched["name"], settings=searched["settings"]),
    )


def images_of(attack: Choice) -> int:
    """Reconstructions of each person."""
    plugin = attack.plugin
    while not hasattr(plugin, "images") and getattr(plugin, "attack", None) is not None:
        plugin = plugin.attack
    return int(getattr(plugin, "images", 1))


def cost(inversion: Run, prepared: Prepared) -> Cost:
    """What an inversion asks for one person and for all, its budget included."""
    declared, budget = cost_of(attacker_of(inversion), prepared.data), inversion.spec["budget"]
    if budget is None:
        return declared
    shared = min(declared.shared_queries, budget)
    own = min(declared.queries, budget - shared)
    return Cost(own, min(declared.gradient_images, own), shared)


def asks(run: Run, prepared: Prepared) -> float:
    """Pictures that a run shows to the user's model at most; infinite where nobody declares how many.

    What attacks and floors ask for counts always. What is shown to measure the model and to score reconstructions
    counts of a server only: a model that runs here is not asked by an attacker then, but by its owner.
    """
    classes = prepared.data.shape.classes
    if run.kind == "targets" and imported.is_imported(run):
        return float((HELDOUT_SHOWN + LEARNT_SHOWN) * classes) if prepared.paid else 0.0
    if run.kind == "priors":
        helped = "target" in run.parents and run.target.id == prepared.target.id
        return math.inf if helped else 0.0
    if run.kind not in ("inversions", "scores"):
        return 0.0
    inversion = run if run.kind == "inversions" else run.inversion
    if inversion.target.id != prepared.target.id:
        return 0.0
    people = inversion.spec["identities"] or classes
    if run.kind == "scores":
        return float(images_of(attacker_of(inversion).attack) * people) if prepared.paid else 0.0
    own = cost(inversion, prepared)
    return float(own.queries * people + own.shared_queries)


def everything(prepared: Prepared, experiment: Experiment) -> float:
    """Pictures that an experiment shows to the user's model at most, from the finding out to the last score."""
    planned = lineage(plan(experiment, prepared.target.root))
    return prepared.found.shown + math.fsum(asks(run, prepared) for run in planned)
