"""Many targets under many attacks at once: defenses over their strengths, seeds, and attackers who know the defense.

A sweep is a table of settings (`mibench run SUITE.toml`, or the options of `mibench sweep`). Defenses and attacks are
named with their settings behind them: `re location=torus`, `ppa steps=100`.

An *informed* attacker knows how the target was defended: besides the attack itself he tries it wrapped in `align`
(which breaks several defenses) and every change that the defense's card declares (`adaptive`). All of them may ask the
target for no more images than the attack itself, so that the strongest is the strongest at equal budget.
"""

import os
import shlex
import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mibench.experiments import planning
from mibench.plugins import registry
from mibench.plugins.settings import parse_settings
from mibench.runs import Run
from mibench.runtime.errors import UserError, unknown

__all__ = ["SUITES", "Sweep", "plan", "read", "suites"]

SUITES = Path(__file__).parent / "suites"
"""The suites that ship with mibench."""


@dataclass(frozen=True)
class Sweep:
    """What to train and how to attack it.

    Args:
        title: What it is about.
        dataset: The data set; its settings are `settings.data`.
        model: Architecture of the targets.
        defenses: `none`, `re`, `re+bido`, `re location=torus`, ...; `all` is every defense that is published or a
            control and can change this architecture.
        strengths: grid (the values of each defense's card), default (each defense's own), or a list of values.
        seeds: Of the targets.
        methods: `ppa`, `cma_es`, `ppa steps=100`, ...
        informed: Add what an attacker tries who knows the defense, at the attack's own budget.
        floors: Floors to compute for each target.
        preset: Of the attacks.
        identities: How many are attacked; all if absent.
        pretrained: What targets start from: none, imagenet or public; none, or what the defense must have, if absent.
        evaluators: Evaluation models, comma-separated; two of other families if absent.
        settings: `training`, `data`, `prior`, `evaluator` and their fields.
    """

    title: str = ""
    dataset: str = "digiface"
    model: str = "cnn"
    defenses: tuple[str, ...] = ("none", "re")
    strengths: str | tuple[Any, ...] = "grid"
    seeds: tuple[int, ...] = (0,)
    methods: tuple[str, ...] = ("ppa",)
    informed: bool = False
    floors: tuple[str, ...] = ("prior_search", "public_search")
    preset: str = "quick"
    identities: int | None = None
    pretrained: str | None = None
    evaluators: str | None = None
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.defenses or not self.methods or not self.seeds:
            raise UserError("a sweep needs at least one defense, one method and one seed")
        if min(self.seeds) < 0:
            raise UserError(f"seeds must not be negative, got {min(self.seeds)}")
        if isinstance(self.strengths, str) and self.strengths not in ("grid", "default"):
            raise UserError(f"strengths are 'grid', 'default' or a list of values, got '{self.strengths}'")


def suites() -> dict[str, Path]:
    """The shipped suites by name."""
    return {path.stem: path for path in sorted(SUITES.glob("*.toml"))}


def read(source: str) -> list[Sweep]:
    """The sweeps of a TOML file, or of a shipped suite by its name: one for each [[sweep]], which share what is above.

    Raises:
        UserError: If there is no such file, it is not TOML, or a field is unknown or of a wrong type.
    """
    path = Path(source)
    if not os.path.isfile(source):  # unlike Path.is_file it takes any text
        if source not in suites():
            raise unknown("suite", source, suites())
        path = suites()[source]
    try:
        text = tomllib.loads(path.read_text(encoding="utf-8"))
        repr(text)  # some numbers and depths Python reads but cannot write
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, not TOML, or a number too long
        raise UserError(f"{path} is not a TOML file: {error}") from None
    parts = text.pop("sweep", [{}])
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        raise UserError(f"{path}: each sweep is a table of its own: [[sweep]]")
    return [_sweep(path, {**text, **part}) for part in parts]


def _sweep(path: Path, given: dict[str, Any]) -> Sweep:
    known = {item.name: item.type for item in fields(Sweep)}
    for name, value in given.items():
        if name not in known:
            raise unknown(f"field of {path.name}", name, known)
        if name in ("defenses", "methods", "seeds", "floors"):
            kind: type = int if name == "seeds" else str
            if not isinstance(value, list) or not all(type(item) is kind for item in value):
                raise UserError(f"{path}: {name} must be a list of {kind.__name__}, got {value!r}")
            given = given | {name: tuple(value)}
        elif name == "strengths" and isinstance(value, list):
            given = given | {name: tuple(value)}
        elif name == "settings":
            if not isinstance(value, dict) or not all(isinstance(item, dict) for item in value.values()):
                raise UserError(f"{path}: settings are tables: [settings.training]")
        elif name == "informed":
            if not isinstance(value, bool):
                raise UserError(f"{path}: informed must be true or false, got {value!r}")
        elif name == "identities":
            if type(value) is not int or value < 1:
                raise UserError(f"{path}: identities must be a whole number of at least 1, got {value!r}")
        elif not isinstance(value, str):
            raise UserError(f"{path}: {name} must be a text, got {value!r}")
    return Sweep(**given)


def named(text: str) -> tuple[str, dict[str, str]]:
    """`re location=torus` to its name and settings."""
    try:
        words = shlex.split(text)
    except ValueError:
        words = []
    if not words or any("=" not in word for word in words[1:]):
        raise UserError(f"'{text}' should be a name and settings, as in: re location=torus a_e=0.4")
    return words[0], parse_settings(words[1:])


def variants(sweep: Sweep, text: str) -> list[tuple[str, dict[str, dict[str, str]]]]:
    """The stacks that one entry of `defenses` stands for: the strength of its first defense goes over the grid."""
    name, given = named(text)
    first = name.split("+")[0]
    sets = planning.defense_sets([f"{key}={value}" for key, value in given.items()], name, [])
    card = registry.card("defenses", first)
    strength = card.get("strength")
    if strength is None or sweep.strengths == "default" or strength in sets[first]:
        return [(name, sets)]
    values = card["grid"] if sweep.strengths == "grid" else list(sweep.strengths)
    return [(name, sets | {first: {**sets[first], strength: str(value)}}) for value in values]


def _everybody(sweep: Sweep) -> list[str]:
    """Every defense that can change this architecture and start from such a network."""
    from mibench.stages.train_target import require_compatible

    found = []
    for name in registry.names("defenses"):
        choice = registry.configure("defenses", name)
        try:
            require_compatible(sweep.model, [choice], sweep.pretrained or choice.plugin.start)
        except UserError:
            continue
        found.append(name)
    return sorted(found, key=lambda name: name != "none")


def plan_targets(sweep: Sweep, root: Path, precision: str) -> list[Run]:
    """The targets of a sweep, undefended first, each once."""
    data = planning.choose_data(sweep.dataset, _texts(sweep, "data"))
    chosen = [text for one in sweep.defenses for text in (_everybody(sweep) if one == "all" else [one])]
    found: dict[str, Run] = {}
    for seed in sweep.seeds:
        for text in dict.fromkeys(chosen):
            for name, sets in variants(sweep, text):
                sets["training"] = _texts(sweep, "training") | sets["training"]
                run = planning.plan_target(root, data, sweep.model, name, sets, seed, precision, sweep.pretrained)
                found.setdefault(run.id, run)
    return list(found.values())


def _texts(sweep: Sweep, owner: str) -> dict[str, str]:
    return {
        key: ",".join(map(str, value)) if isinstance(value, list) else str(value)
        for key, value in sweep.settings.get(owner, {}).items()
    }


def plan(sweep: Sweep, root: Path, precision: str, seed: int = 0) -> list[Run]:
    """The scores of a sweep: every target under every attack and what an informed attacker makes of it.

    Raises:
        UserError: For whatever a single command would refuse.
    """
    scores: dict[str, Run] = {}
    methods = [named(text) for text in sweep.methods]
    for name in sweep.floors:
        if name not in planning.floors():
            raise unknown("floor", name, planning.floors())
    for method, settings in methods:
        planning.choose_methods(method, sweep.preset, settings)  # a wrong name is told before anything is trained
    for target in plan_targets(sweep, root, precision):
        for method, settings in methods:
            main = _attack(sweep, target, method, settings, seed, precision, None)
            runs = [main]
            if sweep.informed and (others := planning.informed(method, settings, target)):
                most = planning.queries(main)
                runs += [_attack(sweep, target, *other, seed, precision, most) for other in others]
            runs += planning.plan_floors(main, seed, precision, sweep.floors)
            for run in runs:
                score = planning.plan_score(run, sweep.evaluators, precision, _texts(sweep, "evaluator"))
                scores.setdefault(score.id, score)
    return list(scores.values())


def _attack(
    sweep: Sweep, target: Run, method: str, settings: dict[str, str], seed: int, precision: str, budget: int | None
) -> Run:
    return planning.plan_attack(
        target, method, sweep.preset, settings, None, _texts(sweep, "prior"), seed, precision, sweep.identities, budget
    )


def described(sweep: Sweep) -> dict[str, Any]:
    """The sweep as JSON values."""
    return asdict(sweep)
