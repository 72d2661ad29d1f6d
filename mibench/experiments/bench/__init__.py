"""How fast this machine is: `mibench bench`. Ratios to plain loops of the same mathematics, by turns."""

from mibench.experiments.bench.equal import Equal, equal_accuracy
from mibench.experiments.bench.rows import Row, attack_rows, peaks, training_rows

__all__ = ["Equal", "Row", "attack_rows", "equal_accuracy", "peaks", "training_rows"]
