"""A stage that is watched: profiled, its numbers copied elsewhere."""

from contextlib import nullcontext
from dataclasses import dataclass

from mibench.runs.executor import Stage
from mibench.runs.mirrors import Mirror, mirror
from mibench.runs.profiling import profiled
from mibench.runs.run import Run
from mibench.runtime.engine import Engine
from mibench.runtime.progress import Reporter

__all__ = ["Observed"]


@dataclass(frozen=True)
class Observed:
    """Does a run by a stage, wherever an executor sends it, and watches.

    Args:
        stage: What does one run.
        profile: Record what its time goes to (`runs.profiling`).
        mirrors: Where its numbers are copied to (`runs.mirrors`).
    """

    stage: Stage
    profile: bool = False
    mirrors: tuple[Mirror, ...] = ()

    @staticmethod
    def of(stage: Stage, profile: bool, mirrors: tuple[Mirror, ...]) -> Stage:
        """The stage itself where nothing is watched."""
        return Observed(stage, profile, mirrors) if profile or mirrors else stage

    def __call__(self, run: Run, engine: Engine, reporter: Reporter) -> None:
        """Do the run."""
        watching = profiled(run, str(engine.device), reporter) if self.profile else nullcontext(reporter)
        with watching as watched:
            self.stage(run, engine, watched)
        mirror(run, self.mirrors, reporter)
