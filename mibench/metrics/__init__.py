"""One metric a file: pure functions of tensors, a `CARD` that says what to cite, and `METRICS`, what the numbers are.

The other modules are what metrics share. Importing this package is cheap: no torch.
"""

from mibench.metrics.declaration import Direction, Field, Metric, Need, Per, Unavailable, Unit
from mibench.metrics.glossary import Column, Entry, declared, dictionary, listing, metric, parse

__all__ = [
    "Column",
    "Direction",
    "Entry",
    "Field",
    "Metric",
    "Need",
    "Per",
    "Unavailable",
    "Unit",
    "declared",
    "dictionary",
    "listing",
    "metric",
    "parse",
]
