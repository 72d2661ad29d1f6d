"""What scores.json and per_image.csv hold besides metrics, for their data dictionary (`mibench.metrics.dictionary`).

`*` stands for the name of an evaluation model, of two (`resnet+ir`), or of any other key.
"""

from mibench.metrics import Field, Unit

__all__ = ["PER_IMAGE", "SCORES"]

_DATA, _TARGET, _MODEL = "the data set", "the target", "the evaluation model"
_VERIFIER = "the verifier"
_MADE, _CARD = "the reconstructions", "mibench.evaluation.protocol"

PER_IMAGE = (
    Field("identity", Unit.TEXT, "name of the person that the image claims to show", _DATA),
    Field("label", Unit.COUNT, "that person's place among the target's classes, from 0", _DATA),
    Field(
        "answer@*",
        Unit.COUNT,
        "the class that the evaluation model names; from the number of classes on somebody else",
        _MODEL,
    ),
)
"""Columns of per_image.csv."""


def _interval(path: str, unit: Unit, summary: str, source: str) -> tuple[Field, ...]:
    """A mean's five keys."""
    bound = "bound of the 95% interval, clustered by identity"
    return (
        Field(f"{path}.value", unit, summary, source),
        Field(f"{path}.low", unit, f"lower {bound}: {summary}", source),
        Field(f"{path}.high", unit, f"upper {bound}: {summary}", source),
        Field(f"{path}.n", Unit.COUNT, f"how many values the mean is taken over: {summary}", source),
        Field(f"{path}.clusters", Unit.COUNT, f"how many identities the mean is taken over: {summary}", source),
    )


def _sets(path: str) -> tuple[Field, ...]:
    """What stands beside distances of two sets of images."""
    return (
        Field(f"{path}.n", Unit.COUNT, "how many images the distances are taken from", _MADE),
        Field(f"{path}.n_real", Unit.COUNT, "how many private images they are taken to", _DATA),
        Field(
            f"{path}.prdc.k",
            Unit.COUNT,
            "neighbours that precision, recall, density and coverage go by",
            "mibench.metrics.prdc",
        ),
        Field(
            f"{path}.prdc",
            Unit.NUMBER,
            "null: too few images for precision, recall, density and coverage",
            "mibench.metrics.prdc",
        ),
    )


SCORES = (
    Field("n", Unit.COUNT, "how many reconstructions were judged", _MADE),
    Field("identities", Unit.COUNT, "how many people they claim to show", _MADE),
    Field("classes", Unit.COUNT, "how many people the target knows", _DATA),
    Field("copies", Unit.COUNT, "how many reconstructions are a private image, byte by byte", _MADE),
    Field("missing", Unit.TEXT, "people of whom the attack returned no image: misses in every accuracy", _MADE),
    Field("pixels", Unit.TEXT, "sha256 of the pixels that were judged", _MADE),
    Field(
        "unavailable",
        Unit.TEXT,
        "metrics that could not be computed here: name, why, how to get them",
        "mibench.metrics.weights",
    ),
    Field(
        "perceptual",
        Unit.TEXT,
        "empty: no metric that needs published weights could be computed",
        "mibench.metrics.weights",
    ),
    Field("chance.*", Unit.SHARE, "what guessing one of all classes gives", _MODEL),
    *_interval("target.top1", Unit.SHARE, "whether the target itself takes the image for the person", _TARGET),
    *_interval("target.confidence", Unit.SHARE, "the probability that the target gives the person", _TARGET),
    Field("target.passes", Unit.COUNT, "how many passes the target's answers are averaged over", _TARGET),
    Field(
        "target.answer_difference",
        Unit.SHARE,
        "largest difference between the target's scores of one image in two passes; 0 unless it answers at random",
        _TARGET,
    ),
    *(field for path in ("evaluators.*", "ceiling.*", "perceptual.inception") for field in _sets(path)),
    Field("evaluators.*.distractors", Unit.COUNT, "how many people it knows besides the private ones", _DATA),
    Field("evaluators.*.distractors_are_public", Unit.FLAG, "whether these are the attacker's public people", _DATA),
    Field(
        "evaluators.*.yardstick.photograph",
        Unit.NUMBER,
        "mean L2 distance of a real photograph of an attacked person to the nearest held-out one: closeness 1",
        _DATA,
    ),
    Field(
        "evaluators.*.yardstick.stranger",
        Unit.NUMBER,
        "mean L2 distance of a stranger to the nearest held-out image of an attacked person: closeness 0",
        _DATA,
    ),
    Field("evaluators.*.yardstick.source", Unit.TEXT, "which photographs: heldout, or train", _DATA),
    Field("evaluators.*.calibration.threshold", Unit.NUMBER, "log-odds above which identification begins", _MODEL),
    Field("evaluators.*.calibration.rate", Unit.SHARE, "at most so many strangers' images pass it", _MODEL),
    Field("evaluators.*.calibration.strangers", Unit.COUNT, "images of strangers that it was taken from", _DATA),
    Field("evaluators.*.calibration.passing", Unit.SHARE, "share of these that pass it", _MODEL),
    Field(
        "evaluators.*.calibration.named",
        Unit.SHARE,
        "share of these that the model names as a private person without any threshold",
        _MODEL,
    ),
    Field(
        "evaluators.*.calibration.strangers_are",
        Unit.TEXT,
        "who the strangers are: public people, or distractors",
        _DATA,
    ),
    Field(
        "gate",
        Unit.TEXT,
        "what has to agree with the evaluation model in the headline: verified@name, or own_ball@name",
        _VERIFIER,
    ),
    *_interval("likeness_ceiling", Unit.SHARE, "likeness of real held-out images of the attacked people", _DATA),
    Field("both_verified", Unit.SHARE, "null: there are no two verifiers", _VERIFIER),
    Field("truth", Unit.TEXT, "empty: the data know nothing of the images", _DATA),
    Field("verifiers", Unit.TEXT, "empty: no verifier judged these images", _VERIFIER),
    Field("verifiers.*.facts.people", Unit.COUNT, "how many people it was trained on", _VERIFIER),
    Field(
        "verifiers.*.facts.trained_on",
        Unit.TEXT,
        "who they are; of a published recogniser's it is not known that nobody plays another part",
        _VERIFIER,
    ),
    Field("verifiers.*.facts.auc", Unit.SHARE, "area under the ROC curve, genuine against impostor claims", _VERIFIER),
    Field(
        "verifiers.*.facts.roc",
        Unit.TEXT,
        "(false-accept rate, share of genuine images accepted) at some rates",
        _VERIFIER,
    ),
    Field("verifiers.*.facts.thresholds.*", Unit.NUMBER, "cosine above which the metric accepts an image", _VERIFIER),
    Field("verifiers.*.facts.impostors.*.images", Unit.COUNT, "real images of others, of this kind", _DATA),
    Field("verifiers.*.facts.impostors.*.claims", Unit.COUNT, "these times the people that they are not", _DATA),
    Field(
        "verifiers.*.facts.impostors.*.passing.*",
        Unit.SHARE,
        "share of these claims that the metric accepts",
        _VERIFIER,
    ),
    *_interval(
        "verifiers.*.facts.genuine.*",
        Unit.NUMBER,
        "the metric's mean over real held-out images, each compared with the person's others",
        _VERIFIER,
    ),
    Field("card_hash", Unit.TEXT, "12 hex digits of the protocol card: equal cards have equal ones", _CARD),
    Field("card.mibench", Unit.COUNT, "version of the protocol", _CARD),
    Field("card.evaluators", Unit.TEXT, "model, run and seed of each evaluation model, the headline first", _CARD),
    Field("card.verifiers", Unit.TEXT, "model, run, seed and people of each verifier, the headline's first", _CARD),
    Field(
        "card.budget.access", Unit.TEXT, "what the attack was granted: white_box, black_box, label_only or none", _CARD
    ),
    Field("card.budget.known", Unit.FLAG, "whether it is known how the images were made", _CARD),
    Field(
        "card.budget.queries_per_identity",
        Unit.COUNT,
        "most target queries for one identity; null without a limit",
        _CARD,
    ),
    Field("card.images.channels", Unit.COUNT, "1 (grey) or 3", _CARD),
    Field("card.images.height", Unit.COUNT, "pixels", _CARD),
    Field("card.images.width", Unit.COUNT, "pixels", _CARD),
    Field("card.images.crop", Unit.TEXT, "how pictures of another shape became images", _CARD),
    Field("card.images.converted", Unit.TEXT, "how many images were converted, by conversion", _CARD),
    Field(
        "card.reference.distractor_people",
        Unit.COUNT,
        "people whom the evaluation models know besides the private ones",
        _CARD,
    ),
    Field("card.reference.distractors_are_public", Unit.FLAG, "whether these are the attacker's public people", _CARD),
    Field("card.reference.heldout_images", Unit.COUNT, "held-out images of the attacked people", _CARD),
    Field("card.reference.train_images", Unit.COUNT, "private training images of the attacked people", _CARD),
    Field("card.selection.by", Unit.TEXT, "who chose which images are kept", _CARD),
    Field("card.selection.images_per_identity", Unit.COUNT, "fewest and most images of one person", _CARD),
    Field("card.selection.settings", Unit.TEXT, "settings of the attack that decide which images are kept", _CARD),
    Field(
        "card.split.attacked",
        Unit.COUNT,
        "labels of the attacked people; null where these are the first so many",
        _CARD,
    ),
    Field("card.split.classes", Unit.COUNT, "how many people the target knows", _CARD),
    Field("card.split.dataset", Unit.TEXT, "name and settings of the data set", _CARD),
    Field("card.split.fingerprint", Unit.TEXT, "sha256 of all images and names", _CARD),
    Field("card.split.identities", Unit.COUNT, "how many people were attacked", _CARD),
)
"""Keys of scores.json, as dotted paths; lists, and mappings of free keys, are one value."""
