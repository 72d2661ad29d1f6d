"""What the options of `mibench audit` stand for, and its verdict as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from mibench.core import Access
from mibench.experiments.audit import Asked
from mibench.experiments.reading import split_sets
from mibench.models.imported.endpoint import read_endpoint
from mibench.models.imported.network import OUTPUTS, Output
from mibench.models.imported.normalisations import normalisation
from mibench.models.imported.sources import read_source, regular
from mibench.models.imported.ways import Given
from mibench.runtime.errors import UserError, unknown
from mibench.runtime.files import read_text

__all__ = ["read", "read_access", "read_classes"]

CHANNELS = ("rgb", "bgr", "grey")
OWNERS = ["prior", "data", "training", "evaluator", "verifier", "endpoint"]


def read(
    *,
    model: str | None = None,
    weights: Path | None = None,
    endpoint: str | None = None,
    private: Path | None = None,
    public: Path | None = None,
    access: str | None = None,
    minutes: float | None = None,
    queries: int | None = None,
    method: str | None = None,
    prior: str | None = None,
    defenses: str | None = None,
    defense_model: str = "cnn",
    identities: int | None = None,
    evaluators: str | None = None,
    classes: str | None = None,
    size: int | None = None,
    normalise: str | None = None,
    channels: str | None = None,
    output: str | None = None,
    image_size: int | None = None,
    faces: bool = False,
    seed: int = 0,
    sets: Sequence[str] | None = None,
    precision: str = "fp32",
) -> Asked:
    """An audit from what was typed.

    Raises:
        UserError: For whatever is missing, unknown or excludes something else; nothing has been opened by then.
    """
    wanted = tuple(name.strip() for name in defenses.split(",") if name.strip()) if defenses else ()
    given = split_sets(sets, "attack", [*OWNERS, *(one for name in wanted for one in name.split("+"))])
    server = read_endpoint(endpoint, given.pop("endpoint")) if endpoint else None
    given.pop("endpoint", None)
    source = read_source(model, weights, server)
    if private is None:
        raise UserError("whose pictures did the model learn? give --private DIR with one folder for each person")
    if normalise is not None:
        normalisation(normalise)
    for word, value, known in (("--channels", channels, CHANNELS), ("--output", output, OUTPUTS)):
        if value is not None and value not in known:
            raise unknown(f"value of {word}", value, known)
    return Asked(
        source,
        private.expanduser(),
        public.expanduser() if public else None,
        read_access(access),
        Given(
            size,
            normalise,
            channels,
            cast(Output | None, output),
            read_classes(classes) if classes not in (None, "matched") else None,
            classes == "matched",
        ),
        minutes,
        queries,
        method,
        prior,
        identities,
        image_size,
        evaluators,
        wanted,
        defense_model,
        given,
        faces,
        seed,
        precision,
    )


def read_access(text: str | None) -> Access | None:
    """`white-box` or `white_box`.

    Raises:
        UserError: Another word.
    """
    if text is None:
        return None
    words = {one.adjective: one for one in Access} | {one.key: one for one in Access}
    if text not in words:
        raise unknown("access", text, [one.adjective for one in Access])
    return words[text]


def read_classes(text: str | None) -> tuple[str, ...]:
    """Names of the outputs, one a line.

    Raises:
        UserError: The file cannot be read, or names nobody.
    """
    file = regular(Path(text or ""), "--classes")
    try:
        lines = read_text(file, "utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {text} cannot be read ({error}); save it as text in UTF-8") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise UserError(f"--classes {text} is empty; write one name a line, in the order of the outputs")
    return names
