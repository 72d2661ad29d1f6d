"""What leaks from a model of the user's own: found out what it wants, planned for a budget, run as ordinary runs.

`prepare` opens the model and probes it, `schedule` says what will be done and what it costs, `conduct`ing that is the
business of whoever asked. Nothing here searches or scores: an audit is an imported target and experiments on it.
"""

from mibench.experiments.audit.preparing import pictures, prepare
from mibench.experiments.audit.question import Asked, Prepared
from mibench.experiments.audit.schedule import Schedule, Step, schedule

__all__ = ["Asked", "Prepared", "Schedule", "Step", "pictures", "prepare", "schedule"]
