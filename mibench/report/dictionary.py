"""The data dictionary: what each column of each CSV file means, in which unit, and which way it leaks more.

Columns of metrics are described by their declarations (`mibench.metrics`); here stands what the others are.
"""

from collections.abc import Mapping
from functools import cache

import pandas as pd

from mibench.core import Access
from mibench.metrics import Field, Unit, dictionary, metric, parse
from mibench.report.curves import BELOW

__all__ = ["describe", "fields"]

BOUNDS = {"low": "lower", "high": "upper"}

ABOUT = (
    ("protocol", Unit.TEXT, "rows that share it are comparable: same images, evaluation models and attacked people"),
    ("target_label", Unit.TEXT, "the target by its defense, unique within a protocol"),
    ("attack_label", Unit.TEXT, "the attack, unique within a target"),
    ("dataset", Unit.TEXT, "the data set"),
    ("dataset_settings", Unit.TEXT, "its settings that are not defaults; of a folder its name"),
    ("fingerprint", Unit.TEXT, "digest of all pixels of the data set"),
    ("evaluators", Unit.TEXT, "the evaluation models, headline first"),
    ("verifiers", Unit.TEXT, "the verifiers, the headline's first; empty where the data have too few people"),
    ("gate", Unit.TEXT, "what has to agree with the evaluation model in the headline: verified@name or own_ball@name"),
    ("identities", Unit.COUNT, "people attacked, in groups.csv of the group; in differences.csv people compared"),
    ("classes", Unit.COUNT, "people the target knows"),
    ("unavailable", Unit.TEXT, "metrics whose weights are not on this machine"),
    ("target", Unit.TEXT, "run of the target"),
    ("model", Unit.TEXT, "architecture of the target"),
    ("target_seed", Unit.TEXT, "training seed of the target"),
    ("start", Unit.TEXT, "what its training started from"),
    ("training", Unit.TEXT, "its training settings that are not the recipe's"),
    (
        "training_ended_by",
        Unit.TEXT,
        "why the target's training was not doubled again: fit (99% as trained), plateau (a doubling added less than "
        "1.5 points), budget (not converged) or accuracy (of a model trained elsewhere: on the private pictures)",
    ),
    ("defense", Unit.TEXT, "the target's defenses with their strength; `none` without any"),
    ("family", Unit.TEXT, "the same without the strength"),
    ("base", Unit.TEXT, "network, start and training: what an undefended twin shares"),
    ("strength", Unit.TEXT, "value of the defense's strength"),
    ("attack", Unit.TEXT, "the attack; `strongest` compares each side's strongest"),
    (
        "role",
        Unit.TEXT,
        "attack, floor (no optimisation: what is reached without inverting) or ceiling (real unseen images)",
    ),
    ("preset", Unit.TEXT, "the attack's preset, or its settings that are not defaults"),
    ("access", Unit.TEXT, "what the attacker may ask of the target"),
    ("seed", Unit.TEXT, "seed of the attack"),
    ("seeds", Unit.COUNT, "training seeds that say something of the row"),
    ("budget", Unit.COUNT, "most queries per identity that were allowed; empty: unlimited"),
    ("prior", Unit.TEXT, "what the attack searched"),
    ("prior_draws", Unit.TEXT, "what the prior draws: public images of the data, or of what it was shipped for"),
    ("prior_preset", Unit.TEXT, "the prior's preset, or its settings that are not defaults"),
    ("n", Unit.COUNT, "reconstructions; in differences.csv paired differences"),
    ("inversion", Unit.TEXT, "run of the attack"),
    ("prior_run", Unit.TEXT, "run of the prior"),
    ("card", Unit.TEXT, "digest of the protocol card"),
    ("score", Unit.TEXT, "run of the score"),
)

COST = (
    ("queries", Unit.COUNT, "images the target was asked for one identity"),
    ("gradient_images", Unit.COUNT, "of these, images it was differentiated for"),
    ("shared_queries", Unit.COUNT, "images it was asked for all identities together"),
    ("prior_queries", Unit.COUNT, "images it was asked while the prior was learnt"),
    ("prior_gradients", Unit.COUNT, "of these, images it was differentiated for"),
    ("seconds", Unit.SECONDS, "the whole inversion, by the clock"),
    ("cpu_seconds", Unit.SECONDS, "the whole inversion, on all cores together"),
    ("prior_cpu_seconds", Unit.SECONDS, "learning the prior, on all cores together"),
    ("training_seconds", Unit.SECONDS, "training of the target on all cores together, mean over seeds"),
    ("training_ratio", Unit.RATIO, "the same, divided by the undefended target's"),
)

DIFFERENCES = (
    ("attack_with", Unit.TEXT, "attack on the defended target; `a | b`: chosen on either half of the people"),
    ("attack_without", Unit.TEXT, "attack on the undefended target"),
    ("with", Unit.SHARE, "likeness on the defended target"),
    ("without", Unit.SHARE, "likeness on the undefended target"),
    ("difference", Unit.POINTS, "with minus without, paired over people"),
    (
        "p",
        Unit.NUMBER,
        "two-sided test that the difference is zero: sign flips over people, with several seeds also over these; "
        "empty where both are identical",
    ),
    ("p_adjusted", Unit.NUMBER, "the same after Holm's correction over the tested rows of the protocol"),
    (
        "verdict",
        Unit.TEXT,
        "lower or higher where p_adjusted < .05; identical by construction; else no clear difference",
    ),
    ("detectable", Unit.POINTS, "smallest true difference shown with p < .05 in 4 of 5 repeats"),
    ("identities_needed", Unit.COUNT, "people that show a true difference of this size with p < .05 in 4 of 5 repeats"),
    ("seeds_needed", Unit.COUNT, "training seeds that do, other people included"),
    ("natural_accuracy_with", Unit.SHARE, "natural accuracy of the defended target"),
    ("natural_accuracy_without", Unit.SHARE, "natural accuracy of the undefended target"),
    ("natural_accuracy_difference", Unit.POINTS, "with minus without"),
    ("score_with", Unit.TEXT, "score (or both) of the attack on the defended target"),
    ("score_without", Unit.TEXT, "score (or both) of the attack on the undefended target"),
    (
        "judged_by",
        Unit.TEXT,
        "whether the row compares the strongest attacks; in tradeoff.csv the strongest attack's name",
    ),
)

TRADEOFF = (
    (
        "track",
        Unit.TEXT,
        "what the attacks' prior draws: realistic (learnt on public images), best case (it drew the private people), "
        "shifted (another domain), no prior; empty: unknown",
    ),
    ("converged", Unit.FLAG, "whether the training of every seed had converged"),
    ("natural_least", Unit.SHARE, "natural accuracy of the worst training seed"),
    ("natural_most", Unit.SHARE, "natural accuracy of the best training seed"),
    ("judged_access", Unit.TEXT, "access of the strongest attack"),
    ("judged", Unit.SHARE, "likeness of the strongest attack of any access, chosen on half of the people"),
    ("points", Unit.COUNT, "points on the curve, no defense included"),
    ("hypervolume", Unit.SHARE, "area of (natural accuracy, 1 - likeness) that some strength or no defense reaches"),
    ("hypervolume_none", Unit.SHARE, "what the undefended target alone reaches"),
)

PEOPLE = (
    ("rank", Unit.COUNT, "place by hit rate, equal ones by distance; 1 leaks most"),
    ("identity", Unit.TEXT, "the person's name, or a number where names are withheld"),
    ("label", Unit.TEXT, "the person's class number"),
    ("group", Unit.TEXT, "the person's group, from groups.csv of the data; empty: none"),
    ("hits", Unit.COUNT, "reconstructions that the headline takes for the person (likeness)"),
    ("rate", Unit.SHARE, "likeness"),
    (
        "nearest",
        Unit.SQUARED_L2,
        "squared distance of the nearest reconstruction to a private image, headline model's features",
    ),
    ("distance_rank", Unit.COUNT, "place by that distance; 1 leaks most"),
    ("gini", Unit.SHARE, "inequality of hit rates over people: 0 all alike, 1 one person has all hits"),
    ("gini_by_luck", Unit.SHARE, "Gini that so few reconstructions each would give if all people were alike"),
    ("never", Unit.SHARE, "people who were never hit"),
    ("always", Unit.SHARE, "people who were hit every time"),
    ("gap", Unit.POINTS, "largest minus smallest likeness of a group"),
    ("gap_most", Unit.TEXT, "the group that leaks most"),
    ("gap_least", Unit.TEXT, "the group that leaks least"),
    ("gap_p", Unit.NUMBER, "that memberships shuffled among people give so large a gap"),
    ("gap_p_adjusted", Unit.NUMBER, "the same after Holm's correction over the targets of the protocol"),
)

REAL = (
    ("distractors", Unit.COUNT, "other people that the evaluation model knows"),
    ("distractors_are_public", Unit.FLAG, "whether these are the attacker's public people"),
    ("strangers", Unit.COUNT, "real images of strangers that it was shown"),
    ("verifier_people", Unit.COUNT, "how many people the verifier was trained on"),
    ("verifier_trained_on", Unit.TEXT, "who they are; of a published recogniser's any may play another part"),
    ("verifier_auc", Unit.SHARE, "area under the verifier's ROC curve: real images of the person against impostors'"),
)

JUDGES = (
    ("judge", Unit.TEXT, "column of the judge's verdicts"),
    ("difference", Unit.POINTS, "defended minus undefended by this judge, paired over people"),
    ("judges", Unit.TEXT, "whether the judges of the comparison agree: agree, clear to some, opposite signs"),
)


GROUPED = (
    ("identities", Unit.COUNT, "attacked people of the group"),
    ("gap", Unit.POINTS, "largest minus smallest likeness of a group"),
)
"""Words that groups.csv uses in its own way."""

BY_FILE: Mapping[str, tuple[tuple[str, Unit, str], ...]] = {
    "groups": GROUPED,
    "differences": (
        ("n", Unit.COUNT, "paired differences"),
        ("identities", Unit.COUNT, "people compared"),
        ("judged_by", Unit.FLAG, "whether the row compares the strongest attacks"),
    ),
    "judges": (("n", Unit.COUNT, "paired differences"), ("identities", Unit.COUNT, "people compared")),
    "combinations": (
        ("defense", Unit.TEXT, "the stack without its first defense's strength"),
        ("part", Unit.TEXT, "one of its defenses, measured alone over its own strengths"),
        ("below", Unit.POINTS, "how much natural accuracy both cost"),
        ("state", Unit.TEXT, "why there is no number: not reached, not converged; empty: there is one"),
        ("with", Unit.SHARE, "likeness of the stack there"),
        ("without", Unit.SHARE, "likeness of the part alone there"),
        ("difference", Unit.POINTS, "the stack's minus the part's, paired over people and seeds"),
        ("p", Unit.NUMBER, "two-sided p-value that this difference is zero"),
    ),
    "published": (
        ("suite", Unit.TEXT, "the suite that repeats the published number"),
        ("metric", Unit.TEXT, "what was measured and published"),
        ("evaluator", Unit.TEXT, "the evaluation model that measured it here; empty where none is needed"),
        ("measured", Unit.SHARE, "what was measured here"),
        ("published", Unit.SHARE, "what the paper gives"),
        ("difference", Unit.POINTS, "measured minus published; its bounds are those of the measured number"),
        ("within", Unit.TEXT, "whether the published number lies in the interval of the measured one: yes or no"),
        ("source", Unit.TEXT, "where it was published"),
        ("note", Unit.TEXT, "what the published number leaves open"),
    ),
    "tradeoff": (("judged_by", Unit.TEXT, "the strongest attack of any access"),),
}


def _of_access(access: Access) -> list[tuple[str, Unit, str]]:
    """The columns of tradeoff.csv for one access."""
    key, words = access.key, access.words
    return [
        (
            f"{key}_attack",
            Unit.TEXT,
            f"strongest {words} attack that was run on every seed, chosen on half of the people; empty: none",
        ),
        (key, Unit.SHARE, "its likeness, all seeds together"),
        (f"{key}_difference", Unit.POINTS, "that minus the undefended twin's, paired over people and seeds"),
        (f"{key}_identical", Unit.FLAG, "whether both are the same by construction, and their images pixel by pixel"),
        (f"{key}_p", Unit.NUMBER, "two-sided p-value, as in differences.csv; empty where both are identical"),
        (
            f"{key}_p_adjusted",
            Unit.NUMBER,
            "the same after Holm's correction over the tested differences of the access",
        ),
        (f"{key}_delta", Unit.RATIO, "likeness prevented per natural accuracy lost, the papers' trade-off"),
        (f"{key}_pareto", Unit.FLAG, "whether no other target is both more accurate and safer under that access"),
    ]


def _of_natural(points: float) -> list[tuple[str, Unit, str]]:
    """The columns of curves.csv for one natural accuracy."""
    key, where = f"at_minus_{points:g}", f"where natural accuracy is {points:g} points lower"
    return [
        (key, Unit.SHARE, f"likeness {where}, on a line between two measured strengths"),
        (f"{key}_difference", Unit.POINTS, f"the same minus likeness without a defense, {where}"),
        (f"{key}_p", Unit.NUMBER, f"two-sided p-value that this difference is zero, {where}"),
        (f"{key}_p_adjusted", Unit.NUMBER, "the same after Holm's correction over the defenses of the access"),
        (f"{key}_open", Unit.SHARE, f"open-set attack accuracy by the headline's evaluation model {where}"),
        (f"{key}_open_difference", Unit.POINTS, f"the same minus the one without a defense, {where}"),
        (f"{key}_between", Unit.TEXT, "the points that it lies between, the more accurate one first"),
        (
            f"{key}_state",
            Unit.TEXT,
            "why there is no number: not reached, not converged, no twin, unknown; empty: there is one",
        ),
    ]


@cache
def fields(file: str) -> dict[str, Field]:
    """What the columns of a CSV file are that are no metric's; a bound is described beside its value."""
    matched = [line for below in BELOW for line in _of_natural(100 * below)]
    by_access = [line for access in Access for line in _of_access(access)]
    lines = [
        *ABOUT,
        *COST,
        *DIFFERENCES,
        *TRADEOFF,
        *PEOPLE,
        *REAL,
        *JUDGES,
        *matched,
        *by_access,
        *BY_FILE.get(file, ()),
    ]
    known: dict[str, Field] = {}
    for name, unit, summary in lines:
        known[name] = Field(name, unit, summary, f"{file}.csv")
        for bound, word in BOUNDS.items():
            text = f"{word} bound of the 95% interval, clustered by identity: {summary}"
            known[f"{name}_{bound}"] = Field(f"{name}_{bound}", unit, text, f"{file}.csv")
    return known


def _field(file: str, column: str) -> Field | None:
    """What a column is that no metric declares under this name."""
    known = fields(file)
    name, _, network = column.partition("@")
    if name in known and (network == "" or parse(column) is None):
        text = f"{known[name].summary}{f', {network}' if network else ''}"
        return Field(column, known[name].unit, text, known[name].source)
    if column.startswith("pgd_"):
        robust = metric("adversarial_accuracy")
        return Field(column, robust.unit, f"{robust.summary}, ε {column.removeprefix('pgd_')}", f"{file}.csv")
    if parse(column) is None and file == "tradeoff":
        return Field(column, Unit.NUMBER, "what a defense reported of its training, mean over seeds", f"{file}.csv")
    return None


def describe(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per file and column: unit, direction, meaning, source.

    Args:
        frames: A file's name, without its ending -> its rows.

    Raises:
        UserError: If a column is neither a metric's nor described here.
    """
    lines = []
    for file, frame in frames.items():
        columns = [str(column) for column in frame]
        known = [own for column in columns if (own := _field(file, column)) is not None]
        lines += [{"file": f"{file}.csv"} | entry._asdict() for entry in dictionary(columns, known)]
    return pd.DataFrame(lines).rename(columns={"name": "column"})
