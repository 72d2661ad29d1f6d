"""A rehearsal of suites: every step that they have, once, on small stand-in data, so that no real run dies after a day.

What is large is replaced (data, numbers of steps, sides of images, weights that are not here), everything else is what
the suite asks for: networks, recipes, defenses, attacks, priors, judges, and the code that does a real run. Nothing of
it can be taken for a result: it happens in a folder of its own, which goes with it, under ids that no real run has.
"""

from mibench.experiments.rehearsal.doing import CANNOT_TELL, Rehearsal, Step, rehearse

__all__ = ["CANNOT_TELL", "Rehearsal", "Step", "rehearse"]
