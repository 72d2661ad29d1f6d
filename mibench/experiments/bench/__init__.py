"""How fast this machine is: `mibench bench`. Ratios to plain loops of the same mathematics, by turns."""

from mibench.experiments.bench.curve import Equal
from mibench.experiments.bench.equal import equal_accuracy
from mibench.experiments.bench.rows import Row, attack_rows, peaks, training_rows
from mibench.experiments.bench.scores import score_rows

__all__ = ["Equal", "Row", "attack_rows", "equal_accuracy", "peaks", "score_rows", "training_rows"]
