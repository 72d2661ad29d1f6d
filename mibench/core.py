"""The vocabulary: oracle, prior, attack, defense, reconstructions, data set.

A *target* answers through an *oracle*; a *prior* proposes images; an *attack* searches the prior until the oracle
agrees; a *score* judges the reconstructions with *evaluation models* that the attack never saw.
Images are float NCHW in [0, 1] at every boundary and uint8 on disk.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from mibench.engine import Engine, Reporter, read_checkpoint, write_checkpoint
from mibench.errors import UserError
from mibench.pixels import taken
from mibench.rng import Noise

__all__ = [
    "Access",
    "Attack",
    "Batch",
    "BudgetExhausted",
    "Cost",
    "Dataset",
    "Defense",
    "Oracle",
    "Prior",
    "PriorRecipe",
    "Reconstructions",
    "Schedule",
    "Session",
    "Source",
    "Split",
    "Step",
    "Term",
    "Workspace",
    "Wrapper",
    "to_float",
    "to_uint8",
]


def to_float(images: UInt8[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
    """Stored images to [0, 1]: x / 255."""
    return images.to(torch.float32) / 255.0


def to_uint8(images: Float[Tensor, "*n c h w"]) -> UInt8[Tensor, "*n c h w"]:
    """Images in [0, 1] to what is stored and scored: round(255 x), half to even, clamped."""
    return (images.float() * 255.0).round().clamp(0, 255).to(torch.uint8)


# --- data -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Images with one label each, as uint8; the pixels may lie in a file (`mibench.pixels`) or on another device."""

    images: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.images)

    def on(self, engine: Engine) -> "Split":
        """The labels on the engine's device; the pixels too, if it has room for them (`Engine.resident`)."""
        return Split(engine.resident(self.images), self.labels.to(engine.device))

    def take(self, rows: Int64[Tensor, " m"]) -> "Split":
        """A copy of some images, in order."""
        return Split(taken(self.images, rows), self.labels[rows.to(self.labels.device)])

    def at(self, rows: Int64[Tensor, " m"]) -> Float[Tensor, "m c h w"]:
        """Some images in [0, 1], on the device of `rows`, wherever the pixels lie."""
        return to_float(self.images[rows.to(self.images.device)].to(rows.device))

    def parts(self, batch: int, device: torch.device) -> Iterator[Float[Tensor, "_ c h w"]]:
        """All images in [0, 1], in order, `batch` of them at a time on this device."""
        return (to_float(part.to(device)) for part in self.images.split(batch))

    def hashes(self) -> list[str]:
        """sha256 of each image's bytes, to find the same picture in two splits."""
        return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in self.images.cpu()]

    def fingerprint(self) -> str:
        """sha256 over shape, pixels and labels, in order."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for part in self.images.split(64):
            digest.update(part.cpu().contiguous().flatten().numpy())
        digest.update(self.labels.cpu().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """One private population, what the attacker may know of its kind, and who else the evaluation models know.

    Args:
        name: The data set's name.
        classes: Names of the private identities; label i is classes[i] everywhere.
        train: Private images the targets are trained on.
        heldout: The same people, images that no model has seen.
        public: The attacker's images: other people. Labels are public identities, or -1 where unknown.
        distractors: People who are neither private nor (where the data allow) public; an evaluation model learns them
            too, so that it can answer 'someone else'. Labels count from 0.
        distractors_are_public: The data were too few to keep the distractors apart from the attacker's images; then
            `public_search` scores 0 under the open-set evaluation by construction.
        flip: A mirrored image still shows the same class.
        card: Source, licence, how splits were drawn, conversions made.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    heldout: Split
    public: Split
    distractors: Split
    distractors_are_public: bool
    flip: bool
    card: Mapping[str, Any]

    def __post_init__(self) -> None:
        overlap = (set(self.train.hashes()) | set(self.heldout.hashes())) & (
            set(self.public.hashes()) | set(self.distractors.hashes())
        )
        if overlap:
            raise UserError(
                f"{len(overlap)} private image(s) of data set '{self.name}' also lie in its public images; the "
                "attacker must not own private data: remove them from public/ and prepare the data again"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        c, h, w = self.train.images.shape[1:]
        return c, h, w

    @property
    def distractor_count(self) -> int:
        """How many people the evaluation models know besides the private ones."""
        return int(self.distractors.labels.max()) + 1 if len(self.distractors) else 0

    def fingerprint(self) -> str:
        """sha256 over all splits and class names: two data sets with one fingerprint are the same data."""
        parts = [split.fingerprint() for split in (self.train, self.heldout, self.public, self.distractors)]
        return hashlib.sha256("\n".join([*self.classes, *parts]).encode()).hexdigest()


@dataclass(frozen=True)
class Source(ABC):
    """Where a data set comes from: a frozen dataclass whose fields are the choices that change its images."""

    @abstractmethod
    def load(self, reporter: Reporter | None = None) -> Dataset:
        """Read or draw all images, telling how far it has come; the same fields give the same bytes."""

    def identity(self) -> dict[str, Any]:
        """What decides the bytes, for run ids: the fields, or a content hash where a field is a path."""
        return asdict(self)


# --- oracle ---------------------------------------------------------------------------------------------------------


class Access(IntEnum):
    """What an attacker may ask of the target; each level includes the ones below."""

    LABEL_ONLY = 1
    BLACK_BOX = 2
    WHITE_BOX = 3


Term = Callable[[Float[Tensor, "m k"], Float[Tensor, "m d"], Int64[Tensor, " m"]], Float[Tensor, " m"]]
"""(logits, penultimate features, identities) -> what an attack minimises, one value per image."""


class BudgetExhausted(Exception):
    """The attack asked for more than its budget allows; the query was not answered."""


class Oracle:
    """The only door to the target: counted, budgeted, and closed above the attack's access.

    Every call names the identity each image is for (`labels`, repeated in order if `x` holds several views), or None
    for images that serve all identities at once (a shared search pool), which count for each identity.

    Args:
        target: The deployed target; images in [0, 1] to logits; `.features` gives its penultimate layer.
        access: What it grants.
        num_classes: How many classes the target has.
        budget: Most image queries per identity; None is unlimited.
        tick: Told of every image queried (a progress bar).
    """

    def __init__(
        self,
        target: nn.Module,
        access: Access,
        num_classes: int,
        budget: int | None = None,
        tick: Callable[[int], None] | None = None,
    ) -> None:
        self._target = target
        self.access = access
        self.num_classes = num_classes
        self.budget = budget
        self._tick = tick or (lambda count: None)
        self.device = next(target.parameters()).device
        self.queries = torch.zeros(num_classes, dtype=torch.int64)
        self.gradient_images = torch.zeros(num_classes, dtype=torch.int64)
        self.shared_queries = 0
        self.shared_gradients = 0
        self._seen: tuple[Tensor, Tensor] | None = None

    def _need(self, access: Access, what: str) -> None:
        if self.access < access:
            raise UserError(
                f"this attack asked the target for {what}, which needs {access.name.lower()} access; it was granted "
                f"{self.access.name.lower()}"
            )

    def _per_class(self, labels: Int64[Tensor, " n"]) -> Int64[Tensor, " k"]:
        # A search passes the same tensor object at every step, so the device is asked for its labels only once.
        if self._seen is None or self._seen[0] is not labels:
            self._seen = (labels, torch.bincount(labels.cpu(), minlength=self.num_classes))
        return self._seen[1]

    def _count(self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None, gradient: bool) -> None:
        if labels is not None and len(x) % len(labels):
            raise ValueError(f"{len(x)} images are no whole number of views of {len(labels)} labelled ones")
        if labels is None:
            wanted = self.queries + self.shared_queries + len(x)
        else:
            wanted = self.queries + self.shared_queries + self._per_class(labels) * (len(x) // len(labels))
        if self.budget is not None and int(wanted.max()) > self.budget:
            raise BudgetExhausted(f"budget of {self.budget} queries per identity is spent")
        self._tick(len(x))
        if labels is None:
            self.shared_queries += len(x)
            self.shared_gradients += len(x) if gradient else 0
            return
        self.queries = wanted - self.shared_queries
        if gradient:
            self.gradient_images = self.gradient_images + self._per_class(labels) * (len(x) // len(labels))

    def affordable(self, wanted: int, rows: int) -> int:
        """How many times, at most `wanted`, every identity can still ask for `rows` images each.

        An attack plans with this before it splits its work: otherwise the identities and restarts that happen to be
        searched first would spend what the others need.
        """
        if self.budget is None or rows == 0:
            return wanted
        return max(0, min(wanted, (self.budget - self.shared_queries - int(self.queries.max())) // rows))

    def counts(self) -> dict[str, Tensor]:
        """What has been asked so far: queries and gradient images per class, and queries shared by all classes."""
        return {
            "queries": self.queries,
            "gradient_images": self.gradient_images,
            "shared_queries": torch.tensor(self.shared_queries),
            "shared_gradients": torch.tensor(self.shared_gradients),
        }

    def add(self, counts: Mapping[str, Tensor]) -> None:
        """Count what an earlier, interrupted process already asked."""
        self.queries = self.queries + counts["queries"]
        self.gradient_images = self.gradient_images + counts["gradient_images"]
        self.shared_queries += int(counts["shared_queries"])
        self.shared_gradients += int(counts["shared_gradients"])
        self._tick(int(counts["queries"].sum() + counts["shared_queries"]))

    def logits(self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None) -> Float[Tensor, "m k"]:
        """White box: raw logits, differentiable in x. m is a multiple of n (several views of each image)."""
        return self.answers(x, labels)[0]

    def answers(
        self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None
    ) -> tuple[Float[Tensor, "m k"], Float[Tensor, "m d"]]:
        """White box: logits and penultimate features from one forward pass, differentiable in x."""
        self._need(Access.WHITE_BOX, "gradients")
        self._count(x, labels, gradient=torch.is_grad_enabled() and x.requires_grad)
        features = self._target.features(x)  # type: ignore[operator]
        return self._target.head(features).float(), features.float()  # type: ignore[operator]

    def loss(
        self, x: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"], term: Term, noise: Noise
    ) -> Float[Tensor, " n"]:
        """White box: term(logits, features, labels), one value per image, differentiable in x.

        An oracle that looks at an image through several views (see attacks/parts/views.py) averages over them; `noise`
        draws the views. So a gradient attack that asks for losses, not for logits, can be wrapped by `eot` and `align`.
        """
        logits, features = self.answers(x, labels)
        return term(logits, features, labels)

    @torch.no_grad()
    def probs(self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None) -> Float[Tensor, "m k"]:
        """Black box: served scores, no gradient; a white-box attacker computes the network's own softmax."""
        self._need(Access.BLACK_BOX, "scores")
        self._count(x, labels, gradient=False)
        return torch.softmax(self._scored(x).float(), dim=1)

    def _scored(self, x: Float[Tensor, "m c h w"]) -> Float[Tensor, "m k"]:
        if self.access < Access.WHITE_BOX:
            return self._target(x)
        # Who holds the weights is not bound to what the service makes of their scores.
        return self._target.head(self._target.features(x))  # type: ignore[operator]

    @torch.no_grad()
    def labels(self, x: Float[Tensor, "m c h w"], labels: Int64[Tensor, " n"] | None) -> Int64[Tensor, " m"]:
        """Label only: the predicted class."""
        self._need(Access.LABEL_ONLY, "labels")
        self._count(x, labels, gradient=False)
        return self._scored(x).argmax(dim=1)


# --- prior ----------------------------------------------------------------------------------------------------------


class Prior(nn.Module, ABC):
    """What the attacker knows about how images of this kind look: a generator, perhaps with its critic."""

    latent_dim: int
    image_shape: tuple[int, int, int]
    critic_kind: Literal["none", "wgan", "kp1"] = "none"
    """'wgan': critic(x) is a score, higher is more real; 'kp1': the log-sum-exp of K real-class logits."""

    differentiable: bool = True
    """Whether gradients flow from images to latents."""
    conditional: bool = False
    """Whether `decode` draws an image of a given identity and so needs `y`."""
    spaces: tuple[str, ...] = ("z",)
    """Latent spaces by name, the one that `decode` takes first; see `space`."""

    slope: float = 1.0
    """Negative slope of the activation that latents went through (StyleGAN's w: .2); 1 is none. MIRROR undoes it."""
    blocks: int = 0
    """At how many places a search may enter the generator; 0 is none. Place k lies between block k - 1 and block k."""

    @abstractmethod
    def decode(self, z: Float[Tensor, "n d"], y: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n c h w"]:
        """Latents to images in [0, 1], differentiable; a conditional prior draws identity y, others ignore it."""

    def space(self, name: str) -> "Prior":
        """This prior seen through another of its latent spaces: a prior whose `sample` and `decode` work there.

        Raises:
            UserError: If it has no such space.
        """
        if name != self.spaces[0]:
            raise UserError(
                f"the prior {type(self).__name__} has no {name} space, only {', '.join(self.spaces)}; "
                "use --prior stylegan2"
            )
        return self

    def enter(self, z: Float[Tensor, "n d"], block: int) -> Float[Tensor, "n f"]:
        """What flows into block `block` (1 ... blocks) when z is decoded, flattened."""
        raise UserError(f"the prior {type(self).__name__} cannot be entered; use --prior dcgan or --prior stylegan2")

    def resume(self, z: Float[Tensor, "n d"], inside: Float[Tensor, "n f"], block: int) -> Float[Tensor, "n c h w"]:
        """The image of features that `enter` gave: resume(z, enter(z, k), k) = decode(z), differentiable in both."""
        raise UserError(f"the prior {type(self).__name__} cannot be entered; use --prior dcgan or --prior stylegan2")

    def sample(self, noise: Noise) -> Float[Tensor, "n d"]:
        """Latents from the prior's own distribution: N(0, I), one row per stream of the noise."""
        return noise.normal(self.latent_dim)

    def critic(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """How real an image looks; see `critic_kind`."""
        raise UserError(f"the prior {type(self).__name__} has no critic; choose one that has: wgan_gp or kedmi")


@dataclass(frozen=True)
class Session:
    """What a trainer may use: the machine, a seed, someone to tell, a place for its checkpoint and its pictures."""

    engine: Engine
    seed: int
    reporter: Reporter
    label: str
    checkpoint: Path | None = None
    picture: Callable[[Prior], None] = lambda prior: None


@dataclass(frozen=True)
class PriorRecipe(ABC):
    """How a prior is learnt on public images: a frozen dataclass of the trainer's hyper-parameters."""

    asks: ClassVar[Access | None] = None
    """What it asks the target while it learns; None is nothing. A prior that asks is trained anew for each target, and
    an attack that is granted less cannot use it."""

    @abstractmethod
    def build(self, image_shape: tuple[int, int, int], num_classes: int, public: Split) -> Prior:
        """The untrained (or shipped) prior."""

    def train(self, prior: Prior, public: Split, oracle: Oracle | None, session: Session) -> list[dict[str, float]]:
        """Learn on the public images, in place; returns the log. A shipped prior learns nothing."""
        return []


# --- attack ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reconstructions:
    """What an attack returns: the same number of images for each attacked identity, grouped by identity.

    `failed` marks images for which the search found nothing better than its start; they are scored all the same, so a
    class the attack could not reach counts as 0 instead of vanishing. `latents` are where the search ended:
    decode(latents, labels) gives the images, unless the attack changed the prior or searched inside it.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    latents: Float[Tensor, "n d"]
    failed: Bool[Tensor, " n"]


class Cost(NamedTuple):
    """What an attack asks of the target, in closed form, when its budget does not stop it."""

    queries: int
    """Images per identity."""
    gradient_images: int
    """Of these, images that were differentiated, per identity."""
    shared_queries: int
    """Images that serve all identities at once."""


Kept = TypeVar("Kept", Tensor, dict[str, Tensor])


def _as_is(x: Float[Tensor, "n c h w"], noise: Noise) -> Float[Tensor, "n c h w"]:
    return x


@dataclass(frozen=True)
class Workspace:
    """What a search may use of the machine: how many images at once, and where to keep finished parts.

    Latents never influence each other, so `batch` changes rounding and nothing else.
    """

    batch: int = 256
    folder: Path | None = None
    public: Split | None = None
    """The attacker's images."""
    transform: Callable[[Float[Tensor, "n c h w"], Noise], Float[Tensor, "n c h w"]] = _as_is
    """What the target's defenses do to training images: public knowledge, for attackers who use it (`eot`)."""

    def images(self, attack: str) -> Split:
        """The attacker's images.

        Raises:
            UserError: If there are none.
        """
        if self.public is None or not len(self.public):
            raise UserError(f"{attack} learns from public images; this data set has none")
        return self.public

    def once(self, name: str, oracle: Oracle, compute: Callable[[], Kept]) -> Kept:
        """`compute()`, or what an interrupted process already computed; the oracle's counts follow either way.

        What is computed is a tensor, or tensors by name (the weights of a network).
        """
        if self.folder is None:
            return compute()
        path = self.folder / f"checkpoint-{name}.pt"
        if path.exists():
            state = read_checkpoint(path, oracle.device)
            oracle.add({name: count.cpu() for name, count in state["counts"].items()})
            return cast(Kept, state["value"])
        before = oracle.counts()
        value = compute()
        counts = {key: after - before[key] for key, after in oracle.counts().items()}
        write_checkpoint(path, {"value": value, "counts": counts})
        return value


@dataclass(frozen=True)
class Attack(ABC):
    """A model-inversion attack: a frozen dataclass whose fields are the paper's hyper-parameters."""

    def needs(self, prior: Prior) -> None:  # noqa: B027 (most attacks need nothing special)
        """Refuse a prior that lacks what the attack needs.

        Raises:
            UserError: Naming what is missing and a prior that has it.
        """

    @abstractmethod
    def cost(self, prior: Prior, public: int = 0) -> Cost:
        """How many images it asks the target for; `public` is the number of the attacker's images."""

    @abstractmethod
    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: Workspace
    ) -> Reconstructions:
        """Invert each identity in `labels`; what one identity gets does not depend on which others are asked for."""


@dataclass(frozen=True)
class Wrapper(Attack):
    """An attack around another: `--method ppa+eot` is `eot` around `ppa`. Its own fields are its settings.

    Args:
        attack: What is wrapped; given by the registry.
    """

    attack: Attack | None = field(default=None, metadata={"wrapped": True})

    @property
    def wrapped(self) -> Attack:
        """The attack inside."""
        assert self.attack is not None
        return self.attack

    def needs(self, prior: Prior) -> None:
        """What the attack inside needs."""
        self.wrapped.needs(prior)


# --- defense --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Rows the loop trains on: its loss is sum_i w_i CE(p_i, t_i) / clean.

    The first `clean` rows are the batch's own images, in order; what defenses add stands behind them.
    """

    x: Float[Tensor, "b c h w"]
    t: Float[Tensor, "b k"]
    w: Float[Tensor, " b"]
    clean: int


@dataclass(frozen=True)
class Step:
    """Where the training is, for the hooks of one defense."""

    model: nn.Module
    """The network in training, on the device; never wrapped."""
    memory: nn.Module
    """What `Defense.memory` made; an empty module if it made nothing."""
    optimizer: torch.optim.Optimizer
    noise: Noise
    """The defense's own, keyed by each image's place in the training split; anew for each epoch and hook."""
    epoch: int
    """From 0; equals `epochs` when the training is over."""
    epochs: int
    engine: Engine

    @property
    def time(self) -> float:
        """The share of the training that is over at the start of the epoch, in [0, 1]."""
        return self.epoch / self.epochs


@dataclass(frozen=True)
class Schedule:
    """How a training will go, for a defense that must know beforehand (differential privacy's accountant)."""

    images: int
    per_epoch: int
    epochs: int
    seed: int

    @property
    def rate(self) -> float:
        """How likely an image is in a batch."""
        return 1.0 / self.per_epoch


@dataclass(frozen=True)
class Defense:
    """A change to how the target is trained or served: hooks on the one training loop, all optional.

    Hooks are called in the order in which defenses are stacked (`re+bido`). Each defense draws from a noise of its own,
    so adding one never shifts another's randomness, and a defense at zero strength leaves every bit unchanged.

    A defense is its settings and nothing else. What changes while it trains lies in the model (`surgery`), which the
    attacker gets, or in its `memory`, which he does not; both are kept in checkpoints and with the trained target.
    """

    sampling: ClassVar[Literal["shuffle", "poisson"]] = "shuffle"
    """How batches are drawn: every image once an epoch, or each with probability `Schedule.rate` (private training)."""
    start: ClassVar[Literal["any", "public"]] = "any"
    """'public': it needs a network that public images have trained (`--pretrained public`)."""

    def surgery(self, model: nn.Module) -> nn.Module:
        """The architecture, changed after weights load and before the optimiser is built.

        New layers draw from torch's global generator, which the caller seeds. Called on the meta device too, before
        anything is trained, to learn whether the defense can change this architecture at all.

        Raises:
            UserError: If it cannot; names what the architecture lacks and one that has it.
        """
        return model

    def memory(self, classes: int, image_shape: tuple[int, int, int]) -> nn.Module | None:
        """Tensors of the defense's own (triggers, a discriminator), drawn from torch's seeded global generator."""
        return None

    def engine(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """What runs the forward pass and what takes the steps, wrapped; at most one defense of a stack may do so.

        Whatever wraps the model must leave its parameters in place: the model itself is what is kept.
        """
        return model, optimizer

    def epoch(self, step: Step) -> None:
        """The clock, called after `model.train()` at the start of each epoch; must not rely on earlier calls."""

    def transform(self, x: Float[Tensor, "b c h w"], noise: Noise) -> Float[Tensor, "b c h w"]:
        """Training images after the base augmentation, in [0, 1].

        The noise is keyed by each image's place in the training split; `noise.fixed()` is the same in every epoch.
        """
        return x

    def batch(self, batch: Batch, step: Step) -> Batch:
        """Rows, dense targets and weights: smoothing, mixing, triggers, adversarial rows.

        An inner optimisation uses torch.autograd.grad, so that it leaves no gradient in the model, and leaves buffers
        and train or eval flags as they were.
        """
        return batch

    def taps(self, model: nn.Module) -> Sequence[nn.Module]:
        """Modules whose outputs `penalty` wants to see."""
        return ()

    def penalty(self, batch: Batch, logits: Float[Tensor, "b k"], taps: Sequence[Tensor], step: Step) -> Tensor | None:
        """A scalar added to the loss, or None; taps may be bf16."""
        return None

    def finish(self, step: Step, train: Split) -> dict[str, float]:
        """Called once after training: undo what `engine` did, fill the memory; returns what to report (epsilon)."""
        return {}

    def deploy(self, model: nn.Module, memory: nn.Module) -> nn.Module:
        """What is served, and so what is attacked and whose natural accuracy counts."""
        return model
