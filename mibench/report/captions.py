"""A protocol's main table with the lines below it: what the numbers mean, how they were made, what is missing."""

from collections.abc import Iterable

import pandas as pd

from mibench.metrics import Unit, metric
from mibench.plugins import registry
from mibench.report import summary
from mibench.report.format import missing
from mibench.report.result import Result
from mibench.report.tables import (
    ABOVE,
    BEST,
    HEADLINE,
    WORST,
    Section,
    beyond,
    columns,
    evaluators,
    measured,
    rows,
    scope,
    title,
    verifiers,
)

__all__ = ["caption", "section"]


def caption(group: pd.DataFrame) -> dict[str, list[str]]:
    """What the numbers mean and how they were made, a line each, with the headers of the columns that a line explains;
    none where it is about the whole table."""
    row, first = group.iloc[0], evaluators(group)[0]
    runs = group[group["target"].notna()]
    sizes = sorted({int(n) for n in runs["n"]})
    n = f"n = {sizes[0]:,}" if len(sizes) == 1 else f"n = {sizes[0]:,} to {sizes[-1]:,}"
    floors = ", ".join(dict.fromkeys(group["attack"][group["role"] == "floor"]))
    real = group[group["role"] == "ceiling"].iloc[0]
    lines: dict[str, list[str]] = {
        f"Rates are % of {n} reconstructions of {row['identities']} identities, [95% interval: bootstrap clustered by "
        f"identity, widened for rates]. {_leaks(HEADLINE)}.": [],
        f"likeness, the headline = {first} names the person (open-set) and {_gate(group)}. open-set = top-1 of an "
        "evaluation model that can also answer 'someone else', closed = private identities only, as in most papers: "
        "both beside it for comparison.": [],
        **{line: [] for line in [_strangers(group), *_verifiers(group)] if line},
        f"{BEST} leaks most and {WORST} least of a target's attacks, by the headline. Floors, without optimisation: "
        f"{floors}. Ceiling: {real['attack']}, {Unit.COUNT.show(real['n'])} unseen real images of the same people, "
        "judged as if reconstructed.": [],
        f"KNN = squared L2 to the nearest private image of the person, in {first}'s features (train to train "
        f"{Unit.SQUARED_L2.show(row[f'knn_real_to_real@{first}'])}); fid@{first} is taken there too. "
        f"{_leaks('knn_train')}.": _headers(("knn_train", "knn_heldout", "fid"), first),
        "queries each = images the target was asked for one identity, those for all identities included; with grad. = "
        "of these, images it was differentiated for; sec. = the whole inversion.": [
            "queries each",
            "with grad.",
            "sec.",
        ],
    }
    lines |= _doubts(group, first)
    lines |= {line: [] for line in _prototypes(group)}
    if runs["target"].nunique() > 1:
        lines[scope(int(runs.groupby("defense")["target_seed"].nunique().min()))] = []
    lines[f"Evaluation models, held-out accuracy: {_judges(group)}."] = []
    lines[f"Attack settings: {_settings(runs)}. Target: {', '.join(sorted(set(runs['model'])))}."] = []
    lines |= {line: [] for line in _partial(runs)}
    learning = runs[runs["prior_queries"] > 0].groupby("prior")[["prior_queries", "prior_gradients"]].max()
    if len(learning):
        parts = [
            f"{name} {int(row['prior_queries']):,}"
            + (f" ({int(row['prior_gradients']):,} of them with grad.)" if row["prior_gradients"] else "")
            for name, row in learning.iterrows()
        ]
        lines[f"What learning a prior asked each target comes on top: {', '.join(parts)}."] = []
    if bool(row[f"distractors_are_public@{first}"]) and "public_search" in set(runs["attack"]):
        note = "The people taken for someone else are the attacker's public people, so public_search scores 0."
        lines[note] = []
    return lines


def _partial(runs: pd.DataFrame) -> list[str]:
    """A line for each preset that stands for its method only in part, see `registry.partial`."""
    attacks = runs[runs["role"] == "attack"][["attack", "preset"]].drop_duplicates()
    told = (
        (f"{row['attack']} {row['preset']}", registry.partial(row["attack"], row["preset"])) for row in rows(attacks)
    )
    return [f"{name} is not the whole method: {what}." for name, what in told if what]


def _headers(names: Iterable[str], at: str) -> list[str]:
    """The headers of some metrics' columns."""
    return [measured(name, at).header for name in names]


def _judges(group: pd.DataFrame) -> str:
    """`resnet 84.6 (80.8 open-set, among 100 other people), ...`."""
    row, share = group.iloc[0], Unit.SHARE.show
    return ", ".join(
        f"{name} {share(row[f'heldout_accuracy@{name}'])} ({share(row[f'heldout_accuracy_open@{name}'])} open-set, "
        f"among {Unit.COUNT.show(row[f'distractors@{name}'])} other people)"
        for name in evaluators(group)
    )


def _leaks(name: str) -> str:
    """`Higher leaks more`, as the metric declares."""
    return metric(name).direction.words.capitalize()


def _gate(group: pd.DataFrame) -> str:
    """What has to agree with the evaluation model, in words."""
    name, _, at = str(group["gate"].iloc[0]).partition("@")
    if name == "verified":
        whom = group[f"verifier_trained_on@{at}"].iloc[0]
        return f"the verifier {at}, trained on {whom}, accepts the image as the person (FAR 1%)"
    return (
        "the image lies in the own-ball, as near to one of the person's training images as its 5 nearest neighbours; "
        "there is no verifier, which takes 20 people who play no other part, 20 private people with 2 held-out images "
        "each, and strangers, or for photographs of faces a published recogniser"
    )


def _strangers(group: pd.DataFrame) -> str:
    """How weak each evaluation model's 'someone else' is; '' without strangers."""
    row, share = group.iloc[0], Unit.SHARE.show
    parts = [
        f"{name} {share(row[f'strangers_named@{name}'])} of {Unit.COUNT.show(row[f'strangers@{name}'])}"
        for name in evaluators(group)
        if not missing(row.get(f"strangers_named@{name}"))
    ]
    return (
        f"Strangers' images that an evaluation model names as a private person, %: {', '.join(parts)}." if parts else ""
    )


def _verifiers(group: pd.DataFrame) -> list[str]:
    """Who the verifiers are and how well they tell real people apart; none without."""
    row, real = group.iloc[0], group[group["role"] == "ceiling"].iloc[0]
    parts = [
        f"{name} trained on {row[f'verifier_trained_on@{name}']}, AUC "
        f"{row[f'verifier_auc@{name}']:.3f}, accepts {Unit.SHARE.show(real[f'verified@{name}'])}% of real held-out "
        f"images at a false-accept rate of 1% ({Unit.SHARE.show(real[f'verified_strict@{name}'])}% at .1%)"
        f"{_unseen(group, name)}"
        for name in verifiers(group)
    ]
    return [f"Verifiers: {'; '.join(parts)}."] if parts else []


def _unseen(group: pd.DataFrame, name: str) -> str:
    """In how few of the attacks' images a face was found to align; '' where nothing is aligned."""
    if f"face_found@{name}" not in group:
        return ""
    found = group.loc[group["role"] != "ceiling", f"face_found@{name}"].dropna()
    if found.empty:
        return ""
    least, most = (Unit.SHARE.show(share) for share in (found.min(), found.max()))
    share = most if least == most else f"{least} to {most}"
    return f", finds a face in {share}% of the reconstructions and judges the others where faces usually lie"


def _prototypes(group: pd.DataFrame) -> list[str]:
    """Said where reconstructions pass more often than photographs."""
    better = beyond(group)
    if not better:
        return []
    names = ", ".join(dict.fromkeys(str(row["attack"]) for row in better))
    truth = [row for row in better if not missing(row.get("latent_rank1"))]
    known = (
        f" The latents, the ground truth, know better: rank-1 {Unit.SHARE.show(truth[0]['latent_rank1'])}% of "
        f"{truth[0]['attack']}'s, a lower bound."
        if truth
        else ""
    )
    return [
        f"{ABOVE} above real held-out images ({names}): prototypical images, nearer to the average of a person's, "
        f"can pass more often than photographs of the person; such a rate is not more than all of the person.{known}"
    ]


def _doubts(group: pd.DataFrame, first: str) -> dict[str, list[str]]:
    """What the columns about false positives mean, where there are any."""
    if f"tpir@{first}" not in group:
        return {}
    note = (
        f"Likeness or look-alike: TPIR = % that {first} identifies as the person more surely than 95% of strangers' "
        "images are identified as anybody; own-ball = open-set and as near to one of the person's training images as "
        "its 5 nearest neighbours; closeness = 0 a stranger's distance to the person's held-out images, 1 another "
        "photograph's; target minus = points by which the target's own verdict exceeds open-set."
    )
    return {note: _headers(("tpir", "own_ball", "closeness", "gap"), first)}


def _settings(runs: pd.DataFrame) -> str:
    """`gmi quick from wgan_gp, ppa quick from dcgan`."""
    attacks = runs[runs["role"] == "attack"][["attack", "preset", "prior"]].drop_duplicates()
    texts = [
        f"{row['attack']} {row['preset']}" + (f" from {row['prior']}" if row["prior"] else "") for row in rows(attacks)
    ]
    return ", ".join(dict.fromkeys(texts))


def section(group: pd.DataFrame, shown: pd.DataFrame, results: Iterable[Result], brief: bool = False) -> Section:
    """A protocol's table, with what could not be measured and how to get it (if brief: where that is written).

    Args:
        group: The rows of the protocol.
        shown: Those of its table: fewer where it is crowded.
        results: The scores.
        brief: Whether it is for a terminal.
    """
    protocol = group["protocol"].iloc[0]
    own = [result for result in results if result.protocol == protocol]
    gone = {item.name: (item.why, item.how) for result in own for item in result.score.unavailable}
    notes = [f"Not measured: {name}: {why}; {how}" for name, (why, how) in gone.items()]
    if brief and gone:
        why = "; ".join(f"{name}: {why}" for name, (why, _) in gone.items())
        path = own[0].run.path / "scores.json"
        notes = [f"Not measured: {why}. What to fetch and where to put it: 'unavailable' in {path}."]
    about = caption(group)
    notes = [*([summary.note(group, shown)] if summary.crowded(group) else []), *about, *notes]
    return Section(title(group), shown, columns(shown), notes, {key: to for key, to in about.items() if to})
