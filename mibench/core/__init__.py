"""The vocabulary: oracle, prior, attack, defense, reconstructions, data set; one noun a file.

A *target* answers through an *oracle*; a *prior* proposes images; an *attack* searches the prior until the oracle
agrees; an *evaluation* judges the reconstructions with *evaluation models* that the attack never saw.
Images are float NCHW in [0, 1] at every boundary and uint8 on disk.
"""

from mibench.core.access import Access
from mibench.core.attack import Attack, AttackContext, Cost, Wrapper
from mibench.core.capabilities import Capabilities, Lacks
from mibench.core.data import Dataset, Shape, Source, Split, to_float, to_uint8
from mibench.core.defense import Batch, Defense, Schedule, Step, Transform, shown_by
from mibench.core.oracle import BudgetExhausted, Oracle, Term
from mibench.core.prior import Prior, PriorTrainer, TrainingContext
from mibench.core.reconstructions import Checked, Reconstructions, checked
from mibench.core.trace import Trace

__all__ = [
    "Access",
    "Attack",
    "AttackContext",
    "Batch",
    "BudgetExhausted",
    "Capabilities",
    "Checked",
    "Cost",
    "Dataset",
    "Defense",
    "Lacks",
    "Oracle",
    "Prior",
    "PriorTrainer",
    "Reconstructions",
    "Schedule",
    "Shape",
    "Source",
    "Split",
    "Step",
    "Term",
    "Trace",
    "TrainingContext",
    "Transform",
    "Wrapper",
    "checked",
    "shown_by",
    "to_float",
    "to_uint8",
]
