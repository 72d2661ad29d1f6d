"""Whether a network's outputs are the people that their numbers say: verified on pictures, not assumed.

The one-to-one naming of people by outputs that gives the learnt pictures most confidence in all (linear assignment) is
compared with the naming as given, on held-out pictures. Where it names significantly more of them rightly, the order
is permuted; a network that confuses two people is not, because both namings are then about as good.

References:
    | The Hungarian Method for the Assignment Problem (Kuhn, 1955)
    | https://doi.org/10.1002/nav.3800020109
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from mibench.models.imported.orders import matching

__all__ = ["Naming", "verify"]

ERRORS = 2.0
"""Standard errors of the paired difference by which a naming must be better."""


@dataclass(frozen=True)
class Naming:
    """What the pictures say of the order of a network's outputs.

    Args:
        outputs: The output that fits each person best.
        given: Share of the held-out pictures named rightly as the order was given.
        matched: The same, as `outputs` names them.
        n: Held-out pictures.
        permuted: Whether `outputs` is significantly better.
    """

    outputs: tuple[int, ...]
    given: float
    matched: float
    n: int
    permuted: bool

    @property
    def moved(self) -> tuple[int, ...]:
        """People whose best output is not their own."""
        return tuple(person for person, output in enumerate(self.outputs) if output != person)

    def told(self, names: Sequence[str]) -> str:
        """The verdict and its evidence, in a line.

        Args:
            names: Of the people.
        """
        own = f"{self.given:.1%} of {self.n} held-out pictures are named rightly"
        if not self.moved:
            return f"label order verified: every person's pictures fit the output of their own number best; {own}"
        odd = ", ".join(f"{names[person]} is output {self.outputs[person]}" for person in self.moved[:4])
        odd += ", ..." if len(self.moved) > 4 else ""
        if not self.permuted:
            return (
                f"label order not contradicted: {own}, and no significantly larger share ({self.matched:.1%}) where "
                f"{len(self.moved)} people are renamed whose learnt pictures fit another output better ({odd})"
            )
        return (
            f"label order PERMUTED for {len(self.moved)} of {len(self.outputs)} people ({odd}): {own}, and "
            f"{self.matched:.1%} when so renamed; give --classes matched, or --classes FILE with one name a line"
        )

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """For metrics.json."""
        known = {"permuted": self.permuted, "moved": len(self.moved), "given": self.given, "matched": self.matched}
        return {**known, "n": self.n, "said": self.told(names)}


def verify(
    learnt: Float[Tensor, "m k"],
    learnt_labels: Int64[Tensor, " m"],
    heldout: Float[Tensor, "n k"],
    heldout_labels: Int64[Tensor, " n"],
    people: int,
) -> Naming:
    """Compare the best naming of the learnt pictures with the given one, on the held-out pictures.

    Args:
        learnt: Logits of pictures that the naming is found on; output i is given as person i.
        learnt_labels: Their people.
        heldout: Logits of other pictures.
        heldout_labels: Their people.
        people: How many there are; the network may have more outputs.
    """
    outputs = matching(learnt.log_softmax(dim=1), learnt_labels, people)
    answers = heldout.argmax(dim=1)
    given = (answers == heldout_labels).double()
    matched = (answers == answers.new_tensor(outputs)[heldout_labels]).double()
    gain, n = matched - given, len(answers)
    error = math.sqrt(max(float(gain.var(correction=0)), 1 / n) / n)
    better = float(gain.mean()) > ERRORS * error
    return Naming(outputs, float(given.mean()), float(matched.mean()), n, better)
