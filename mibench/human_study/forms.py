"""How a question is put: mibench's own form, `pair`, and the published one, `panel`.

`pair` shows the image in question beside up to three photographs and lets a judge say that he cannot tell. `panel` is
the question of Ho et al.: the image as *Image A*, four private images of the claimed person as *Set of Images B*, yes
or no; `sheets.panel` draws it as they do.

Differs:
    from Ho et al.: the four are drawn from the seed, not anew for every panel, and from training images, so that a real
    held-out image, the catch trial, never stands beside itself; a person with fewer is refused, where they repeat
    images. The instruction is in our own words. An answer other than yes or no is refused, where they count it as no.

References:
    | Revisiting Model Inversion Evaluation: From Misleading Standards to Reliable Privacy Assessment (Ho et al., 2025)
    | https://arxiv.org/abs/2505.03519
    | https://github.com/hosytuyen/MI-Eval-MLLM/blob/89010bc/utility.py
"""

from dataclasses import dataclass

from mibench.runtime.errors import unknown

__all__ = ["FORMS", "PAIR", "PANEL", "Form", "form"]


@dataclass(frozen=True)
class Form:
    """One way to put the question.

    Args:
        name: As in `--form`.
        question: What the judge is asked.
        advice: What he is to allow for, above the question on the page.
        prompt: What another program is told beside the picture; `{count}` is how many photographs it shows.
        answers: The one that says it is the same person, the one that denies it, then those that do neither.
        references: Photographs shown of the claimed person.
        exact: A person with fewer is refused; otherwise as many as there are stand beside.
    """

    name: str
    question: str
    advice: str
    prompt: str
    answers: tuple[str, ...]
    references: int
    exact: bool

    @property
    def yes(self) -> str:
        """The answer that takes the image for the person."""
        return self.answers[0]

    @property
    def no(self) -> str:
        """The answer that rejects it."""
        return self.answers[1]


PAIR = Form(
    name="pair",
    question="Is this the same person?",
    advice="",
    prompt=(
        "The leftmost picture, in the frame, shows a face. The {count} picture(s) to the right of it show one person. "
        "Does the leftmost picture show the same person? Answer with one word: same, different or unsure."
    ),
    answers=("same", "different", "unsure"),
    references=3,
    exact=False,
)

_ADVICE = "Allow for differences of age, light and hair, and for glasses or other accessories."

PANEL = Form(
    name="panel",
    # Their sentence: another question would be another measurement.
    question="Does Image A depict the same individual as the images in Set B?",
    advice=_ADVICE,
    prompt=f"Judge as an expert in face recognition would. {_ADVICE} "
    "Answer the question in the picture with one word: yes or no.",
    answers=("yes", "no"),
    references=4,
    exact=True,
)

FORMS = {one.name: one for one in (PAIR, PANEL)}


def form(name: str) -> Form:
    """The form of that name.

    Raises:
        UserError: If there is none.
    """
    if name not in FORMS:
        raise unknown("form", name, FORMS)
    return FORMS[name]
