"""Agreement of evaluation models: an image that fools one family of networks rarely fools another; a likeness convinces
both.

`both` is a share of images, so that it can be compared between attacks. Cohen's kappa cannot: where both models name
nearly every image, chance agreement is nearly complete and kappa falls though they agree.

References:
    | High agreement but low kappa: I. The problems of two paradoxes (Feinstein and Cicchetti, 1990)
    | https://doi.org/10.1016/0895-4356(90)90158-L
"""

from mibench.metrics.declaration import Direction, Metric, Need, Per, Unit

__all__ = ["CARD", "METRICS"]

CARD = {
    "summary": "share of images that two evaluation models of different families both name as the person",
    "title": "High agreement but low kappa: I. The problems of two paradoxes",
    "authors": "Feinstein and Cicchetti",
    "venue": "Journal of Clinical Epidemiology",
    "year": 1990,
    "link": "https://doi.org/10.1016/0895-4356(90)90158-L",
}

METRICS = (
    Metric(
        "both",
        ("both", "models"),
        Unit.SHARE,
        Direction.HIGHER,
        "share of images that two evaluation models of different families both take for the person (open-set)",
        "[0, 1]",
        per=Per.SET,
        needs=(Need.TWO_EVALUATORS,),
    ),
)
