"""The questions: an image beside real photographs of one private person. Is this the same person?

A question is about a reconstruction and the person it was made for; or it is a catch trial, whose answer is known: a
real held-out image of the same person, or of another. Beside it stand some of the claimed person's training images, as
many as its form shows. Which images are asked about is drawn from the seed, person after person in turns, so that more
questions are the same ones and further ones; all forms ask about the same images. A question's id is a hash; questions
are asked in the order of ids, which tells nothing.

Without catch trials an answer means nothing: who always says 'same' finds every attack successful.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from typing import Literal

from jaxtyping import UInt8
from torch import Tensor

from mibench.core import Dataset
from mibench.human_study.forms import PAIR, Form
from mibench.runs import Run
from mibench.runtime.errors import UserError
from mibench.runtime.rng import seed_of
from mibench.stages import artifacts

__all__ = ["Question", "ask"]

Kind = Literal["reconstruction", "same", "other"]


@dataclass(frozen=True)
class Question:
    """One image beside photographs of the person it claims to show.

    Args:
        id: 10 hex digits.
        form: How it is put.
        kind: What is judged; the judge is never told.
        label: The claimed person.
        place: Which of the reconstructions, or of the held-out images, it is about.
        image: What is judged.
        references: Training images of the claimed person.
    """

    id: str
    form: Form
    kind: Kind
    label: int
    place: int
    image: UInt8[Tensor, "c h w"]
    references: UInt8[Tensor, "k c h w"]


def _turns(labels: Iterable[int], *purpose: object) -> list[tuple[int, int]]:
    """(label, place) of every image: each person's images in an order of its own, people in turns."""
    own: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        own.setdefault(label, []).append(place)
    people = sorted(own, key=lambda label: seed_of(*purpose, "person", label))
    piles = [
        [(label, place) for place in sorted(own[label], key=lambda place: seed_of(*purpose, "image", place))]
        for label in people
    ]
    return [one for one in chain.from_iterable(zip_longest(*piles)) if one is not None]


def ask(inversion: Run, data: Dataset, pairs: int, seed: int = 0, form: Form = PAIR) -> list[Question]:
    """The questions about an inversion, in the order in which they are asked.

    Args:
        inversion: What is judged.
        data: What its target was trained on.
        pairs: How many reconstructions; all if there are fewer. For every four of them there is one catch trial of
            each kind, and two of each at least.
        seed: Which ones.
        form: How they are put.

    Raises:
        UserError: If fewer than one pair is asked for, or a person has fewer photographs than the form must show.
    """
    if pairs < 1:
        raise UserError(f"--pairs {pairs}: at least 1 reconstruction must be judged; the default is 40")
    tensors, _ = artifacts.read_tensors(inversion.path / "images.safetensors", "reconstructions")
    images, labels = tensors["images"], tensors["labels"].tolist()
    missing = set(tensors["missing"].tolist()) if "missing" in tensors else set()
    heldout, owners = data.heldout.images.cpu(), data.heldout.labels.tolist()
    attacked = set(labels) - missing  # of whom there is no image there is nothing to judge
    references: dict[int, Tensor] = {}
    for label in attacked:
        own = (data.train.labels == label).nonzero()[:, 0].tolist()
        own.sort(key=lambda place: seed_of("judge", seed, "reference", place))
        if form.exact and len(own) < form.references:
            raise UserError(
                f"--form {form.name} shows {form.references} training images of each person, but {data.classes[label]} "
                f"has {len(own)}; use data with more, or a form that takes fewer"
            )
        references[label] = data.train.images[own[: form.references]].cpu()

    def one(kind: Kind, label: int, place: int, image: Tensor) -> Question:
        text = f"{inversion.id} {seed} {kind} {label} {place}"
        text += "" if form is PAIR else f" {form.name}"  # pairs keep the ids that they had before there were forms
        name = hashlib.sha256(text.encode()).hexdigest()[:10]
        return Question(name, form, kind, label, place, image, references[label])

    chosen = [turn for turn in _turns(labels, "judge", seed) if turn[0] in attacked][:pairs]
    questions = [one("reconstruction", label, place, images[place]) for label, place in chosen]
    catch = max(2, math.ceil(len(chosen) / 4))
    shown = ((label, place) for label, place in _turns(owners, "judge", seed, "same") if label in attacked)
    questions += [one("same", label, place, heldout[place]) for label, place in islice(shown, catch)]
    people = sorted(attacked, key=lambda label: seed_of("judge", seed, "other", label))
    for turn in range(catch):
        label = people[turn % len(people)]
        others = [place for place, owner in enumerate(owners) if owner != label]
        others.sort(key=lambda place: seed_of("judge", seed, "other", label, place))
        if turn // len(people) < len(others):
            place = others[turn // len(people)]
            questions.append(one("other", label, place, heldout[place]))
    return sorted(questions, key=lambda question: question.id)
