"""Can this number be trusted? What looks like privacy but may be a weak attack, and what is no measurement at all.

References:
    | Obfuscated Gradients Give a False Sense of Security (Athalye, Carlini and Wagner, ICML 2018), section 3.1
    | https://arxiv.org/abs/1802.00420
    | On Evaluating Adversarial Robustness (Carlini et al., 2019)
    | https://arxiv.org/abs/1902.06705
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from mibench.core.access import Access
from mibench.stats.intervals import Interval
from mibench.training.convergence import CONVERGED

__all__ = [
    "CHECKS",
    "Evidence",
    "Facts",
    "Finding",
    "Floor",
    "Gate",
    "Judge",
    "brief",
    "check",
    "check_facts",
    "explanation",
    "passed",
]

VANISHED = 0.1
"""The share of images without a gradient from which an attack by gradients is crippled."""

TOLERANCE = 1e-3
"""How far the sum of served scores may be from 1."""

WEAK = 0.5
"""Accuracy on unseen private images below which an evaluation model's verdicts are mostly its own mistakes."""

FEW = 2048
"""Images from which a 2,048-dimensional covariance can have full rank."""

PEOPLE = 20
"""Attacked people below which an interval over people is wide and says little of other people."""

OTHERS = 10
"""People besides the private ones below which an evaluation model can hardly answer 'someone else'."""

ACCEPTED = 0.1
"""The share of strangers' claims that a gate of the headline may accept."""

NAMED = 1 / 3
"""The share of strangers that an open-set evaluation model may name as a private person."""

QUICK = "quick"
"""The preset that is compared with random search."""

SAME = 2e-3
"""The share of the usual squared distance between two images of a person below which two images are one and the same:
one image judged twice, in bfloat16 and with norms folded, is up to 1e-3 of it from itself."""

SHAKY = 0.01
"""How much the scores of one image may differ between two passes of a target that is not random."""


@dataclass(frozen=True)
class Evidence:
    """What is known of one defended configuration.

    Args:
        label: What to call it.
        best: Access -> the strongest attack of that access and its attack accuracy.
        gaps: (weaker, stronger access) -> the weaker one's best minus the stronger one's best, paired over identities.
        side_effects: Of its targets, as their metrics.json has them; one for each seed.
    """

    label: str
    best: Mapping[Access, tuple[str, Interval]]
    gaps: Mapping[tuple[Access, Access], Interval]
    side_effects: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Judge:
    """What is known of an evaluation model; weights is a digest, accuracy that on unseen private images."""

    name: str
    family: str
    weights: str | None
    classes: tuple[str, ...] | None
    accuracy: float
    dataset: str


class Floor(NamedTuple):
    """An attack against the best of some floors: its name, its likeness, and the attack's minus that, paired."""

    name: str
    rate: Interval
    gap: Interval


class Gate(NamedTuple):
    """What lets images of strangers through: its name, and the share of them that passes."""

    name: str
    passing: float


@dataclass(frozen=True)
class Facts:
    """What is known of one score; None where it was not recorded.

    Args:
        label: What to call it.
        family: The target's architecture family.
        weights: Digest of the target's weights.
        classes: The target's class names, in the order of its logits.
        dataset: Fingerprint of the data the target learnt.
        judges: The evaluation models.
        n: How many reconstructions were scored.
        inception: Whether their FID is that of Inception's 2,048 features.
        shared: How many private images lie among the attacker's or the distractors'.
        prior_dataset: Fingerprint of the data whose public part the prior learnt.
        selects: Who chose the images that are kept: nobody, the target, or an evaluation model.
        scored: Digest of the pixels that were scored.
        saved: Digest of the pixels that are on disk.
        answer_difference: Largest difference between the target's scores of one image in two passes.
        passes: How many passes its scores are averaged over.
        role: `attack` or `floor`: a floor is above nothing.
        preset: The attack's preset, or its settings that are not defaults.
        likeness: The headline.
        floor: The best of its floors in the headline.
        random: Of an attack with the preset `QUICK`, the best of the floors that ask the target as often and search at
            random.
        people: How many people were attacked.
        others: Fewest people besides the private ones that an evaluation model knows.
        data: The data set's name.
        prior: The prior's name.
        prior_draws: What it draws: the name of a data set, `public` or `none`.
        gates: Verifiers and thresholds of identification.
        named: Evaluation models, with the share of strangers that each names as a private person.
        copies: How many reconstructions are a private image of the person they claim to show.
        missing: Of how many people no image came back.
        fit: The target's accuracy on its own training images as trained.
        converged: Whether its training ended by the recipe's rule, not by its budget; None in older runs.
        imported: The target was trained elsewhere.
        rivals: How many attacks the strongest on this target is chosen from.
        cross_fitted: Whether it is chosen on other people than it is reported on.
        generators: Global generators that were drawn from while the attack ran.
    """

    label: str
    family: str
    weights: str | None
    classes: tuple[str, ...] | None
    dataset: str
    judges: tuple[Judge, ...]
    n: int
    inception: bool = False
    shared: int | None = None
    prior_dataset: str | None = None
    selects: str = "target"
    scored: str | None = None
    saved: str | None = None
    answer_difference: float | None = None
    passes: int = 1
    role: str = "attack"
    preset: str = ""
    likeness: Interval | None = None
    floor: Floor | None = None
    random: Floor | None = None
    people: int | None = None
    others: int | None = None
    data: str = ""
    prior: str = ""
    prior_draws: str | None = None
    gates: tuple[Gate, ...] = ()
    named: tuple[Gate, ...] = ()
    copies: int | None = None
    missing: int = 0
    fit: float | None = None
    converged: bool | None = None
    imported: bool = False
    rivals: int = 1
    cross_fitted: bool = True
    generators: tuple[str, ...] = ()


class Finding(NamedTuple):
    """What a check found."""

    check: str
    label: str
    text: str

    @property
    def line(self) -> str:
        """All of it in one line."""
        return f"{self.label}: {self.text} ({self.check})"


# --- of a defense ---------------------------------------------------------------------------------------------------


def weaker_access_wins(one: Evidence) -> str | None:
    """An attacker who may ask for less reconstructs more than one who may ask for everything.

    Whoever holds the weights can do all that others can. Where the stronger access looks safer, its attacks failed for
    a reason of their own: masked gradients, a saturated softmax, too few steps. Believe the weaker access's number.
    """
    for (weak, strong), gap in one.gaps.items():
        if weak < strong and gap.low > 0:
            better, worse = one.best[weak], one.best[strong]
            return (
                f"{weak.adjective} {better[0]} reaches {100 * better[1].value:.1f}%, {strong.adjective} {worse[0]} "
                f"only {100 * worse[1].value:.1f}% (paired difference {100 * gap.value:+.1f} [{100 * gap.low:+.0f},"
                f"{100 * gap.high:+.0f}]): its gradients may be masked"
            )
    return None


def gradients_vanish(one: Evidence) -> str | None:
    """For too many images the loss of another identity has no gradient at all.

    An attack by gradients then never starts, which says nothing about what the target knows. Attack the logits
    (objective=max_margin), or with scores or labels only.
    """
    shares = [
        norms["vanishing"]
        for effects in one.side_effects
        for norms in [effects.get("gradient_norm", {}).get("cross_entropy", {})]
        if "vanishing" in norms
    ]
    if shares and max(shares) > VANISHED:
        return f"cross-entropy has no gradient at {100 * max(shares):.0f}% of held-out images"
    return None


def not_probabilities(one: Evidence) -> str | None:
    """The scores that the target serves are negative, not finite, or do not sum to 1.

    Black-box attacks take them for probabilities, and fail on anything else for no good reason.
    """
    errors = [effects["served_sum_error"] for effects in one.side_effects if "served_sum_error" in effects]
    wrong = [error for error in errors if not error <= TOLERANCE]  # NaN too
    return f"the served scores are off 1 by up to {max(wrong):.3g}" if wrong else None


# --- of a score -----------------------------------------------------------------------------------------------------


def evaluator_is_target(one: Facts) -> str | None:
    """An evaluation model is the target itself, or of its family.

    Attacks make images for the target; a model that sees as it does says yes to what fools it. Judge with models of
    other families, trained with another seed.
    """
    for judge in one.judges:
        if judge.weights is not None and judge.weights == one.weights:
            return f"the evaluation model {judge.name} has the target's own weights"
        if judge.family == one.family:
            return f"the evaluation model {judge.name} is of the target's own family, {judge.family}"
    return None


def evaluator_too_weak(one: Facts) -> str | None:
    """An evaluation model fails on too many real, unseen images of the people it judges.

    Its verdicts on reconstructions are then mostly its own mistakes. Train it longer or choose a larger one.
    """
    weak = [judge for judge in one.judges if not judge.accuracy >= WEAK]
    return (
        "; ".join(
            f"{judge.name} recognises only {100 * judge.accuracy:.0f}% of unseen images of these people"
            for judge in weak
        )
        or None
    )


def identities_overlap(one: Facts) -> str | None:
    """Private images also lie among the attacker's public images or the evaluation models' other people.

    Finding them is then no inversion. Remove them from the public images.
    """
    return f"{one.shared} private image(s) are public too" if one.shared else None


def labels_differ(one: Facts) -> str | None:
    """Target and evaluation model do not mean the same person by the same number.

    Alphabetical against numerical order is enough. Every hit is then a coincidence. Both must list the same names in
    the same order.
    """
    for judge in one.judges:
        if one.classes is not None and judge.classes is not None and judge.classes != one.classes:
            place = next(
                (i for i, (a, b) in enumerate(zip(one.classes, judge.classes, strict=False)) if a != b),
                min(len(one.classes), len(judge.classes)),
            )
            return f"class {place} of {judge.name} is not the target's"
    return None


def evaluator_of_other_data(one: Facts) -> str | None:
    """An evaluation model learnt other images than the target's data set has.

    It then knows other people, or other splits of them, and held-out images may be its training images.
    """
    other = [judge.name for judge in one.judges if judge.dataset != one.dataset]
    return f"{', '.join(other)} learnt another version of the data" if other else None


def prior_knows_private(one: Facts) -> str | None:
    """The prior learnt from images of another split than the target's, so that private images may be among them.

    A generator of the private people reconstructs them without any inversion. Train it on the public split of the same
    data.
    """
    if one.prior_dataset is not None and one.prior_dataset != one.dataset:
        return "the prior learnt the public images of another version of the data, where private ones may be public"
    return None


def too_few_for_fid(one: Facts) -> str | None:
    """FID in 2,048 dimensions from fewer images than dimensions.

    The covariance is singular and FID strongly biased upwards; compare KID, which is not, or only equal n.
    """
    if one.inception and one.n < FEW:
        return f"FID of {one.n:,} images in 2,048 dimensions is biased; read KID"
    return None


def random_target_scored_once(one: Facts) -> str | None:
    """The target answers the same image differently, and was asked once.

    Its accuracy is then one draw, and one-sample gradients look like privacy. Average several passes, attack with eot.
    """
    if one.answer_difference is not None and one.answer_difference > SHAKY and one.passes < 2:
        return f"two passes of the target differ by up to {one.answer_difference:.2f}, and it was scored in one"
    return None


def selected_by_evaluator(one: Facts) -> str | None:
    """An evaluation model had a say in which reconstructions are kept.

    That is grading one's own exam. An attacker may choose by the target alone.
    """
    return "the reconstructions were selected by an evaluation model" if one.selects == "evaluator" else None


def pixels_differ(one: Facts) -> str | None:
    """The pixels on disk are not those that were scored.

    Numbers of images that nobody can see cannot be checked. Score what is saved.
    """
    if one.scored is not None and one.saved is not None and one.scored != one.saved:
        return "the saved images are not the scored ones"
    return None


def not_above_floor(one: Facts) -> str | None:
    """An attack reaches no more likeness than the best floor: what is reached without any inversion.

    Look-alikes among public images, or the best of some draws from the prior, already show the person as often: the
    attack has inverted nothing that can be told from that. The difference is paired over people and its 95% interval
    must lie above 0; the best of several floors is itself a little lucky. Attack with a better prior or more steps,
    more people, or report the floor.
    """
    if one.role != "attack" or one.floor is None or one.likeness is None or one.floor.gap.low > 0:
        return None
    name, rate, gap = one.floor
    return (
        f"likeness {100 * one.likeness.value:.1f}% is not above {name}, {100 * rate.value:.1f}% (paired difference "
        f"{100 * gap.value:+.1f} [{100 * gap.low:+.0f},{100 * gap.high:+.0f}]): nothing was inverted that a floor does "
        "not reach"
    )


def few_people(one: Facts) -> str | None:
    """Fewer than 20 people were attacked.

    Every interval here resamples people: with so few it is wide, and who they happen to be decides the number. Attack
    more people, or pool several splits of the data.
    """
    if one.people is None or one.people >= PEOPLE:
        return None
    return f"only {one.people} people were attacked; with fewer than {PEOPLE} the numbers say little of others"


def prior_of_other_domain(one: Facts) -> str | None:
    """The prior draws something else than the data show.

    A face generator attacked on coats ends in faces that the networks call coats: classifiers agree, nothing is alike.
    Use a prior that was learnt on this data's own public images (leave --prior out), and look at the pictures.
    """
    if one.prior_draws is None or one.prior_draws in ("public", "none", one.data):
        return None
    return f"the prior {one.prior} draws {one.prior_draws}, not what '{one.data}' shows"


def few_distractors(one: Facts) -> str | None:
    """An evaluation model knows fewer than 10 people besides the private ones.

    'Someone else' is then hardly an answer, and open-set accuracy is closed-set accuracy by another name. Give public
    pictures of more people, a folder for each.
    """
    if one.others is None or one.others >= OTHERS:
        return None
    return f"the evaluation models know {one.others} other people; 'someone else' is hardly an answer"


def strangers_accepted(one: Facts) -> str | None:
    """A gate of the headline accepts more than 10% of the claims of real strangers.

    Then likeness counts people who merely look alike. Train the verifier on more people, or for longer.
    """
    lax = [gate for gate in one.gates if not gate.passing <= ACCEPTED]
    return "; ".join(f"{name} accepts {100 * share:.0f}% of strangers" for name, share in lax) or None


def strangers_named(one: Facts) -> str | None:
    """An open-set evaluation model names more than a third of real strangers as private people.

    Open-set accuracy alone then says little: a picture of nobody is named too. Read likeness, which a second judge must
    confirm, or train the evaluation models with more distractors.
    """
    lax = [gate for gate in one.named if not gate.passing <= NAMED]
    shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in lax)
    return f"strangers named as private people: {shares}; read likeness, not open-set accuracy" if lax else None


def private_image_returned(one: Facts) -> str | None:
    """A reconstruction is a private image of the person, pixel by pixel or as far as every evaluation model can tell.

    No attack that starts from other people's pictures draws that: private images lie in the prior, among the public
    images or in the folder that was scored. Find out how they came there; the number measures that.
    """
    return f"{one.copies} reconstruction(s) are private images themselves" if one.copies else None


def identities_failed(one: Facts) -> str | None:
    """An attack returned no image of some people.

    They count as misses in every accuracy, so that n is what was asked; no distance includes them, so that a distance
    is that of the people who were reached and looks better than it is. Compare accuracies.
    """
    if not one.missing:
        return None
    return f"the attack returned no image of {one.missing} of {one.people} people: misses, named in its scores.json"


def target_not_converged(one: Facts) -> str | None:
    """The target knows less than 99% of its own training images, seen as in training, and more training would help.

    A training is doubled from scratch until the accuracy as trained reaches 99%, or a doubling adds less than 1.5
    points to it, or the budget is used up: then this check fires (of a run that does not say how it ended, below 99%).
    An unfinished network leaks less whatever defends it, so that a defense that slows learning looks protective. Allow
    more doublings (--set training.doublings=...); where a defense never gets there, say so beside the number. How the
    training of a model from elsewhere ended is not known: there this fires where it names fewer than half of the
    private pictures that it was audited with.
    """
    if one.fit is None or one.fit >= CONVERGED or one.converged:
        return None
    if one.imported:
        return (
            f"the model names {100 * one.fit:.1f}% of the private pictures as they are attacked: what it has not "
            "learnt, or cannot see at this size, does not leak"
        )
    return f"the target recognises {100 * one.fit:.1f}% of its own training images as trained: it is not converged"


def quick_below_random(one: Facts) -> str | None:
    """A quick preset reaches less likeness than random search that asks the target as often.

    The row then says nothing of the method, which its authors run for longer. Use --preset paper, or another attack.
    """
    if one.preset != QUICK or one.random is None or one.random.gap.high >= 0:
        return None
    name, rate, gap = one.random
    return (
        f"the quick preset is below {name} at the same number of queries, {100 * rate.value:.1f}% (paired difference "
        f"{100 * gap.value:+.1f} [{100 * gap.low:+.0f},{100 * gap.high:+.0f}]): it says nothing of the method"
    )


def strongest_chosen_on_itself(one: Facts) -> str | None:
    """The strongest of several attacks is chosen and reported on the same people.

    The largest of several noisy numbers is too large: by about 4 points for the best of 5 equal attacks. Choose on one
    half of the people and report on the other (mibench does where at least two are attacked).
    """
    if one.rivals < 2 or one.cross_fitted:
        return None
    return f"the strongest of {one.rivals} attacks is chosen on the people it is reported on"


def global_generators_used(one: Facts) -> str | None:
    """The attack drew random numbers from a global generator of Python, numpy or torch.

    mibench seeds them from the run, so that the run can be repeated from its start. But what one identity gets then
    depends on who else is attacked and on the batch, and a run that was interrupted ends otherwise than one that was
    not. Draw from Noise, with a key for each image.
    """
    if not one.generators:
        return None
    return f"the attack drew from global generators ({', '.join(one.generators)}): its batch and an interruption matter"


OF_DEFENSES: tuple[Callable[[Evidence], str | None], ...] = (weaker_access_wins, gradients_vanish, not_probabilities)
OF_SCORES: tuple[Callable[[Facts], str | None], ...] = (
    evaluator_is_target,
    evaluator_too_weak,
    identities_overlap,
    labels_differ,
    evaluator_of_other_data,
    prior_knows_private,
    too_few_for_fid,
    random_target_scored_once,
    selected_by_evaluator,
    pixels_differ,
    not_above_floor,
    few_people,
    prior_of_other_domain,
    few_distractors,
    strangers_accepted,
    strangers_named,
    private_image_returned,
    identities_failed,
    target_not_converged,
    quick_below_random,
    strongest_chosen_on_itself,
    global_generators_used,
)
CHECKS = {check.__name__: check for check in (*OF_DEFENSES, *OF_SCORES)}
"""Every check by its name."""


def explanation(name: str) -> tuple[str, str]:
    """What a check looks for, and why it matters and what to do."""
    about, _, why = (CHECKS[name].__doc__ or "").partition("\n\n")
    return about, " ".join(why.split())


def check(evidence: Iterable[Evidence]) -> list[Finding]:
    """Everything that any check has to say of defenses."""
    return [Finding(f.__name__, one.label, text) for one in evidence for f in OF_DEFENSES if (text := f(one))]


def check_facts(facts: Iterable[Facts]) -> list[Finding]:
    """Everything that any check has to say of scores; the same words about several are said once."""
    runs_of: dict[tuple[str, str], list[str]] = {}
    for one in facts:
        for f in OF_SCORES:
            if text := f(one):
                runs_of.setdefault((f.__name__, text), []).append(one.label)
    return [
        Finding(name, labels[0] if len(labels) == 1 else f"{len(labels)} scores", text)
        for (name, text), labels in runs_of.items()
    ]


def passed(findings: Iterable[Finding]) -> list[str]:
    """The names of the checks that found nothing."""
    fired = {one.check for one in findings}
    return [name for name in CHECKS if name not in fired]


def brief(findings: Iterable[Finding]) -> list[str]:
    """One line for each check that fired: its first finding, and how many more there are."""
    by_check: dict[str, list[Finding]] = {}
    for one in findings:
        by_check.setdefault(one.check, []).append(one)
    return [own[0].line + (f", and {len(own) - 1} more" if len(own) > 1 else "") for own in by_check.values()]
