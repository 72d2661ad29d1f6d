"""What fits into a number of queries: which attacks, at what size, beside which floors, on how many people.

The price of every choice is that of the runs which it is planned as (`costs.everything`), so that nothing is asked that
was not counted. As many attacks as fit with their quick presets are taken; if not even one fits, one of them is made
smaller, and its floors with it, and then fewer people are attacked. An answer that is needed twice is paid for once, so
that what is asked in the end may be less.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mibench.core import Access
from mibench.experiments.audit import costs
from mibench.experiments.audit.question import Prepared
from mibench.experiments.experiment import Attacker, Evaluators, Experiment, Trained
from mibench.experiments.plan import cost_of
from mibench.experiments.reading import read_attackers, read_evaluators, read_floors
from mibench.plugins import registry
from mibench.plugins.registry import Choice
from mibench.runtime.errors import UserError
from mibench.stages.invert import ACCESS

__all__ = ["LEAST_PEOPLE", "MENU", "Fitted", "TooFewQueries", "attackers_of", "fit", "least", "showing"]

MENU: dict[Access, tuple[str, ...]] = {
    Access.WHITE_BOX: ("ppa", "gmi", "if_gmi"),
    Access.BLACK_BOX: ("mirror_bb", "cma_es", "rlb"),
    Access.LABEL_ONLY: ("brep",),
}
"""Attacks of each access in the order in which a budget takes them in; a choice, not a ranking on the user's data."""

LEAST_PEOPLE = 10
"""People below which the budget is rather overrun, or refused, than fewer attacked."""

LEAST = {"episodes": 100, "generations": 2, "init_pool": 100, "iterations": 10, "own_pool": 10, "pool": 50, "steps": 10}
"""Settings that decide how much is asked, and what they are not made smaller than: below, an attack is not itself."""

SHARES = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.0)
"""Sizes that are tried, as shares of the quick preset; 0 is `LEAST` of everything."""

SMALL = 0.25
"""Share below which rather fewer people are attacked."""

TENS = 100
"""Size from which a setting in tens is made smaller in tens."""

ASIDE = 0.25
"""Share of all queries above which a floor that cannot be made smaller is left out."""

SHOWING = 20
"""Of so many queries one is for finding out what a server answers."""

FEW = 48
"""Pictures that a server is shown at least to find out what it answers."""


class TooFewQueries(UserError):
    """Nothing fits.

    Args:
        text: For the user.
        least: What would do.
    """

    def __init__(self, text: str, least: int) -> None:
        super().__init__(text)
        self.least = least


@dataclass(frozen=True)
class Fitted:
    """What fits.

    Args:
        attackers: With their sizes.
        people: How many are attacked.
        floors: By name.
        floor_settings: Of floors that were made smaller.
        untried: What was left out or made smaller, and why, a sentence each.
    """

    attackers: tuple[Attacker, ...]
    people: int
    floors: tuple[str, ...]
    floor_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    untried: tuple[str, ...] = ()

    def experiment(self, prepared: Prepared, evaluators: Evaluators) -> Experiment:
        """The experiment on the user's model."""
        asked = prepared.asked
        return Experiment(
            "scores",
            prepared.data,
            Trained(planned=(prepared.target,)),
            self.attackers,
            floors=self.floors,
            floor_settings=self.floor_settings,
            identities=self.people if self.people < prepared.data.shape.classes else None,
            evaluators=evaluators,
            seed=asked.seed,
            precision=asked.precision,
            title=f"what leaks from {asked.source.told}",
        )


def showing(queries: int, people: int, pictures: int) -> int:
    """Pictures that a server is shown to find out what it answers: a twentieth of all queries, but two of each person
    and `FEW` at least."""
    return min(pictures, max(FEW, 2 * people, queries // SHOWING))


def attackers_of(prepared: Prepared) -> list[Attacker]:
    """The attacks that were asked for, or the menu of the access.

    Raises:
        UserError: One does not exist, needs more than the access, or settings are given of nobody knows which attack.
    """
    asked = prepared.asked
    attack, prior = asked.settings.get("attack", {}), asked.settings.get("prior", {})
    if asked.method is not None:
        made = read_attackers(asked.method, "quick", attack, asked.prior, prior)
    elif attack:
        raise UserError(
            f"--set {next(iter(attack))}: a setting of which attack? name it with --method, such as "
            f"--method {MENU[prepared.access][0]}"
        )
    else:
        menu = MENU[prepared.access]
        made = tuple(read_attackers(name, "quick", {}, asked.prior, prior)[0] for name in menu)
    own = [one.on("folder") for one in made]
    for one in own:
        if ACCESS[registry.card("attacks", one.attack.name)["access"]] > prepared.access:
            raise UserError(
                f"{one.attack.name} needs more than {prepared.access.words} access; leave --method out or choose of: "
                f"{', '.join(MENU[prepared.access])}"
            )
    return own


def fit(prepared: Prepared, attackers: Sequence[Attacker], people: int) -> Fitted:
    """What `--queries` is enough for.

    Args:
        prepared: The model, and how many queries there are.
        attackers: Those wanted, the first ones first.
        people: How many are attacked at most.

    Raises:
        TooFewQueries: Nothing fits; names the least that would do.
    """
    return _Fitting(prepared).fit(attackers, people)


def least(prepared: Prepared) -> int:
    """The least number of queries that an audit can do with.

    Raises:
        TooFewQueries: It is more than there are.
    """
    asked, everybody = prepared.asked, prepared.data.shape.classes
    return _Fitting(prepared).least(attackers_of(prepared), min(asked.identities or everybody, everybody))


class _Fitting:
    """One search for what fits."""

    def __init__(self, prepared: Prepared) -> None:
        asked = prepared.asked
        assert asked.queries is not None
        self.prepared, self.queries = prepared, asked.queries
        self.fixed = frozenset(asked.settings.get("attack", {}))
        self.evaluators = read_evaluators(asked.evaluators, asked.settings)
        prices = {name: self._whole_floor(name) for name in read_floors()}
        self.floors = tuple(name for name, price in prices.items() if price <= ASIDE * self.queries)
        self.fewest = tuple(name for name, price in prices.items() if price == 0)

    def _whole_floor(self, floor: str) -> int:
        """What a floor asks for that cannot be made smaller; 0 of those that can."""
        known = registry.defaults("attacks", floor)
        if "queries" in known or LEAST.keys() & known.keys():
            return 0
        prior = registry.configure("priors", registry.card("attacks", floor)["prior"])
        asked = cost_of(Attacker(registry.configure("attacks", floor), prior), self.prepared.data)
        return asked.queries + asked.shared_queries

    def fit(self, attackers: Sequence[Attacker], people: int) -> Fitted:
        """See the function `fit`."""
        whole = self._whole(attackers, people)
        if whole is not None:
            return whole
        counts = self._counts(people)
        sizes = [(share, count, self.floors) for count in counts for share in SHARES if share >= SMALL]
        sizes += [(share, counts[-1], self.floors) for share in SHARES if share < SMALL]
        sizes.append((0.0, counts[-1], self.fewest))
        best: tuple[float, Fitted] | None = None
        for attacker in attackers:
            for share, count, floors in sizes:
                made = self._made([attacker], share, count, floors)
                if made is not None and self._price(made) <= self.queries:
                    if best is None or share * count > best[0]:
                        best = share * count, self._told(made, share, people, attackers)
                    break
        if best is None:
            self.least(attackers, people)
            raise AssertionError("what is the least fits")
        return best[1]

    def least(self, attackers: Sequence[Attacker], people: int) -> int:
        """See the function `least`."""
        count = self._counts(people)[-1]
        smallest = [self._made([one], 0.0, count, self.fewest) for one in attackers]
        priced = [(self._price(made), made) for made in smallest if made is not None]
        priced = [one for one in priced if one[0] < float("inf")]
        if not priced:
            names = ", ".join(one.attack.name for one in attackers)
            raise UserError(
                f"--queries: nobody declares how many queries {names} takes with this prior (it learns from the "
                "model's answers); choose another with --prior or --method, or leave --queries out"
            )
        price, made = min(priced, key=lambda one: one[0])
        if price > self.queries:
            enough = self._enough(int(price))
            raise TooFewQueries(self._refusal(enough, made), enough)
        return int(price)

    def _enough(self, price: int) -> int:
        """A number of queries that would do: with more of them more pictures are shown to find out what is answered."""
        found, people = self.prepared.found, self.prepared.data.shape.classes
        enough, before = price, 0
        while self.prepared.paid and enough != before:
            before = enough
            enough = price - found.shown + showing(enough, people, found.pictures)
        return enough

    def _refusal(self, price: int, made: Fitted) -> str:
        paid = self.prepared.paid
        what = "a server needs" if paid else "this model needs"
        also = f", {self.prepared.found.shown} of them to find out what it answers" if paid else ""
        fewer = "" if self.prepared.asked.identities is not None else ", or fewer people with --identities"
        return (
            f"--queries {self.queries}: the least audit of {what} {price:,}{also} ({made.attackers[0].attack.name} at "
            f"its smallest on {made.people} people, with its floors); give --queries {price} or more{fewer}"
        )

    def _counts(self, people: int) -> list[int]:
        """How many people may be attacked, all first; not fewer than `LEAST_PEOPLE` unless the user says so."""
        if self.prepared.asked.identities is not None:
            return [people]
        fewest = min(people, LEAST_PEOPLE)
        counts = [people]
        while counts[-1] > fewest:
            counts.append(max(fewest, counts[-1] // 2))
        return counts

    def _whole(self, attackers: Sequence[Attacker], people: int) -> Fitted | None:
        """As many attacks as fit with their own settings."""
        kept: list[Attacker] = []
        untried: list[str] = []
        spent = 0.0
        for one in attackers:
            price = self._price(Fitted((*kept, one), people, self.floors))
            if price <= self.queries:
                kept.append(one)
                spent = price
            elif price == float("inf"):
                untried.append(f"{one.attack.name} (its prior learns from answers that nobody has counted beforehand)")
            else:
                untried.append(f"{one.attack.name} ({price - spent:,.0f} queries more with its floors; --queries)")
        if not kept:
            return None
        return Fitted(tuple(kept), people, self.floors, {}, (*untried, *_left_out(self.floors)))

    def _made(self, attackers: Sequence[Attacker], share: float, people: int, floors: tuple[str, ...]) -> Fitted | None:
        """Attacks and floors at a share of their size; None where that cannot be."""
        try:
            smaller = tuple(Attacker(self._smaller(one.attack, share), one.prior) for one in attackers)
        except UserError:  # settings that do not go together at this size
            return None
        settings = {name: self._scaled(registry.defaults("attacks", name), share) for name in floors}
        changed = {name: own for name, own in settings.items() if own and share < 1}
        return Fitted(smaller, people, floors, changed)

    def _smaller(self, attack: Choice, share: float) -> Choice:
        if share == 1:
            return attack
        own = attack.spec()["settings"]
        changed = {key: value for key, value in self._scaled(own, share).items() if key not in self.fixed}
        return registry.configure("attacks", attack.name, attack.preset, own | changed)

    def _scaled(self, settings: dict[str, Any], share: float) -> dict[str, int]:
        """The settings that decide how much is asked, at a share of what they are; tens stay tens."""
        scaled = {}
        for key, fewest in LEAST.items():
            value = settings.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > fewest:
                wanted = int(value * share)
                whole_tens = value >= TENS and value % 10 == 0  # what is played in tens side by side stays so
                scaled[key] = max(fewest, wanted - wanted % 10 if whole_tens else wanted)
        return scaled

    def _price(self, made: Fitted) -> float:
        return costs.everything(self.prepared, made.experiment(self.prepared, self.evaluators))

    def _told(self, made: Fitted, share: float, people: int, attackers: Sequence[Attacker]) -> Fitted:
        """The choice with what was left out for it."""
        one = made.attackers[0]
        given = next(other.attack for other in attackers if other.attack.name == one.attack.name)
        before, after = given.spec()["settings"], one.attack.spec()["settings"]
        sizes = ", ".join(f"{key} {after[key]} of {before[key]}" for key in after if after[key] != before[key])
        lines = [f"{other.attack.name} (--queries)" for other in attackers if other.attack.name != one.attack.name]
        if share < 1:
            lines.append(f"{one.attack.name} at its usual size, for want of queries: {sizes or 'smaller floors'}")
        if made.people < people:
            lines.append(f"{people - made.people} of {people} people, for want of queries")
        return Fitted(made.attackers, made.people, made.floors, made.floor_settings, (*lines, *_left_out(made.floors)))


def _left_out(floors: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"the floor {name}, for want of queries" for name in read_floors() if name not in floors)
