"""How many images a data set has, to cost what is done with them: as prepared, else as its publication says."""

from dataclasses import asdict, dataclass

from mibench.core import Split
from mibench.data.digiface import Digiface
from mibench.data.published.packs import Pack
from mibench.data.published.source import STRANGERS, Published
from mibench.plugins.registry import Choice
from mibench.stages import artifacts

__all__ = ["Sizes", "sizes_of"]


@dataclass(frozen=True)
class Sizes:
    """Counts of one data set.

    Args:
        shape: (channels, height, width).
        classes: Private people.
        train: Their images that targets learn.
        heldout: Those that no model sees.
        public: The attacker's images.
        distractors: (people, images) that evaluation models learn besides.
        bystanders: (people, images) that verifiers learn.
    """

    shape: tuple[int, int, int]
    classes: int
    train: int
    heldout: int
    public: int
    distractors: tuple[int, int]
    bystanders: tuple[int, int]

    def learnt(self, kind: str) -> tuple[int, int]:
        """(images, classes) that a network of this kind of runs learns."""
        if kind == "evaluators":
            return self.train + self.distractors[1], self.classes + self.distractors[0]
        if kind == "verifiers":
            return self.bystanders[1], self.bystanders[0]
        if kind == "backbones":
            return self.public, max(2, self.public)
        return self.train, self.classes

    @property
    def pixels(self) -> int:
        """Bytes of all images as they are stored."""
        channels, height, width = self.shape
        images = self.train + self.heldout + self.public + self.distractors[1] + self.bystanders[1]
        return images * channels * height * width


def sizes_of(data: Choice) -> Sizes:
    """Counts, without drawing or decoding an image where they can be told so.

    Raises:
        UserError: The data set is not here and its publication does not say.
    """
    plugin = data.plugin
    if isinstance(plugin, Digiface):
        own, others = plugin.identities, plugin.distractor_images
        return Sizes(
            plugin.shape().image_shape,
            own,
            own * plugin.train_images,
            own * plugin.heldout_images,
            plugin.public_images,
            (plugin.distractors, plugin.distractors * others),
            (plugin.bystanders, plugin.bystanders * others),
        )
    if isinstance(plugin, Published):
        return _published(plugin)
    opened = artifacts.open_dataset({"name": data.name, "settings": asdict(plugin)})
    people = plugin.load_bystanders() if plugin.bystander_count else opened.train.take(opened.train.labels[:0])
    return Sizes(
        opened.image_shape,
        len(opened.classes),
        len(opened.train),
        len(opened.heldout),
        len(opened.public),
        (opened.distractor_count, len(opened.distractors)),
        _people(people),
    )


def _published(plugin: Published) -> Sizes:
    shape = plugin.shape()
    if not plugin.here():
        told = plugin.counts()
        own = shape.public if plugin.public_set else 0
        each = max(1, told.train // told.classes)  # of people of whom nothing is said
        strangers, bystanders = int(getattr(plugin, "distractors", 0)), plugin.bystander_count
        return Sizes(
            shape.image_shape,
            told.classes,
            told.train,
            told.heldout,
            shape.public,
            (strangers, strangers * each) if strangers else (1, min(own or shape.public, STRANGERS)),
            (bystanders, bystanders * each),
        )
    pack = plugin.own()
    alone = (1, min(shape.public, STRANGERS))
    return Sizes(
        shape.image_shape,
        shape.classes,
        _count(pack, "train"),
        _count(pack, "heldout"),
        shape.public,
        _people(pack.part("distractors")) if pack.has("distractors") else alone,
        _people(pack.part("bystanders")) if pack.has("bystanders") else (0, 0),
    )


def _count(pack: Pack, part: str) -> int:
    return int(pack.about["parts"][part][0])


def _people(split: Split) -> tuple[int, int]:
    return int(split.labels.max()) + 1 if len(split) else 0, len(split)
