"""How long runs take on this machine: one step of each distinct kind is timed with random weights, then multiplied.

A step is timed at a batch that the machine can afford now, and its time taken as proportional to the batch; what takes
too long to be timed even so is scaled by its floating-point operations from what was timed. Nothing is kept.

    targets, evaluation models, verifiers    steps x one step of their training, defenses included, and the passes that
                                             measure them
    priors                                   for each of their phases: steps x one step
    inversions                               pictures x one: of those that are differentiated, those that serve
                                             everybody, and the others, as the attack declares them (`Attack.cost`)
    scores                                   pictures x one pass of each judge

What such a model does not know: a target that has not converged is trained again for twice as long (`most`), attacks
may ask for less than they declare, and others may work on the machine at the same time.
"""

from mibench.experiments.seconds.costing import Estimate, Stopwatch, Taken, data_of, estimate
from mibench.experiments.seconds.timer import ALLOWANCE, Known, Rate

__all__ = ["ALLOWANCE", "Estimate", "Known", "Rate", "Stopwatch", "Taken", "data_of", "estimate"]
