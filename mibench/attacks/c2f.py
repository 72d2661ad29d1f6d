"""C2FMI: coarse by gradients on an embedding model of the attacker, fine by differential evolution on the scores.

References:
    | C2FMI: Corse-to-Fine Black-Box Model Inversion Attack (Ye et al., TDSC 2023)
    | https://github.com/MiLabHITSZ/2022YeC2FMI
    | Differential Evolution (Storn and Price, 1997), https://doi.org/10.1023/A:1008202821328
    | Discriminative Unsupervised Feature Learning with Exemplar Convolutional Neural Networks
      (Dosovitskiy et al., 2014), the embedding model where public people are unknown, https://arxiv.org/abs/1406.6909
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mibench.attacks.parts.embedding import public_classes, train_embedding
from mibench.attacks.parts.evolution import Fitness, best_distinct, log_odds
from mibench.attacks.parts.latents import Point
from mibench.attacks.parts.pspace import searched
from mibench.attacks.parts.score_map import certain, fit, network, vector
from mibench.attacks.parts.search import adam, descend, keys, piecewise, render
from mibench.core import Attack, AttackContext, Capabilities, Cost, Oracle, Prior, Reconstructions, Split
from mibench.core.steps import Held
from mibench.models.base import Classifier
from mibench.runtime.errors import UserError
from mibench.runtime.rng import Noise

__all__ = ["C2f", "blends", "fade", "known", "trial", "trios"]

CARD = {
    "summary": "gradients on an embedding model of the attacker's own, then differential evolution on the scores",
    "title": "C2FMI: Corse-to-Fine Black-Box Model Inversion Attack",
    "authors": "Ye, Luo, Naseem, Yang, Shi and Jia",
    "venue": "IEEE TDSC",
    "year": 2023,
    "link": "https://github.com/MiLabHITSZ/2022YeC2FMI",
    "access": "black_box",
    "prior": "dcgan",
    "role": "attack",
    "cost": [16_038, 0, None],
    "requires": ["gradients"],
    "toy": {
        "short": {
            "embedding_epochs": 1,
            "people": 30,
            "map_epochs": 1,
            "width": 16,
            "starts": 8,
            "steps": 3,
            "kept": 4,
            "population": 6,
            "generations": 4,
            "fading": 0,  # the last steps are so small that rounding decides between a child and its parent
        }
    },
}

PRESETS = {
    "paper": {},  # main_attack.py and utils/train_inv.py
    # Chosen on other people: digiface with data.seed 7.
    "quick": {
        "images": 2,
        "embedding": "cnn",
        "people": 500,
        "embedding_epochs": 8,
        "width": 256,
        "map_epochs": 30,
        "map_batch": 32,
        "starts": 32,
        "steps": 12,
        "lr": 0.06,
        "kept": 10,
        "population": 16,
        "generations": 40,
        "fading": 8,
    },
}


def known(p: Float[Tensor, "n k"], y: Int64[Tensor, " n"], top: int) -> Float[Tensor, " n"]:
    """Fitness when only the `top` largest scores are told: log-odds of y among them, else below every such value.

    Outside, minus the mass that was told counts, so that scores which leave more room for y are better.
    """
    if not top or top >= p.shape[1]:
        return log_odds(p, y)
    told = p.topk(top, dim=1)
    inside = (told.indices == y[:, None]).any(dim=1)
    return torch.where(inside, log_odds(p, y), -1000.0 - told.values.sum(dim=1))


def blends(parents: Float[Tensor, "k n 3 d"], strangers: Float[Tensor, "k n 3 d"]) -> Float[Tensor, "k n d"]:
    """.7 (x_1 / 4 + x_2 / 4 + x_3 / 2) + .3 mean of three of the prior's own latents."""
    weight = torch.tensor([0.25, 0.25, 0.5], device=parents.device)
    return 0.7 * torch.einsum("knjd,j->knd", parents, weight) + 0.3 * strangers.mean(dim=2)


def trios(noise: Noise, count: int, kept: int) -> Int64[Tensor, "k n 3"]:
    """Three different parents out of `kept` for each of `count` blends, all triples equally likely."""
    return noise.uniform(count, kept).argsort(dim=2)[..., :3]


def fade(generation: int, generations: int, fading: int = 30) -> float:
    """beta: .1, and .1 * remaining / 50 in the last `fading` generations, the current one included in what remains."""
    remaining = generations - generation
    return 0.1 * remaining / 50.0 if remaining <= fading else 0.1


def trial(
    x: Float[Tensor, "k n d"],
    best: Float[Tensor, "k 1 d"],
    pairs: Int64[Tensor, "k n 4 2"],
    beta: float,
    crossed: Tensor,
) -> Float[Tensor, "k n d"]:
    """Where `crossed`, x_i + .02 (x_best - x_i) + sum over four pairs of beta (x_r - x_s); elsewhere x_i."""
    width = x.shape[2]
    drawn = x.gather(1, pairs.flatten(1)[..., None].expand(-1, -1, width)).reshape(*pairs.shape, width)
    moved = x + 0.02 * (best - x) + beta * (drawn[:, :, :, 0] - drawn[:, :, :, 1]).sum(dim=2)
    return torch.where(crossed, moved, x)


@dataclass(frozen=True)
class C2f(Attack):
    """w from the mean of two samples, 20 Adam steps on |E(G(w)) - M(y)|^2 / C, then differential evolution on log p_y.

    E are the class logits of an embedding model that the attacker trained on public images; M maps the target's scores
    to them (two hidden layers, LeakyReLU .2, dropout .25), learnt on public images that the target answered once.

    Args:
        images: Reconstructions per identity: the last population's best distinct members.
        embedding: E's architecture.
        people: At most this many public people (images, where people are not known) are E's classes.
        embedding_epochs: Passes over E's images.
        embedding_lr: Learning rate of E's SGD, which falls along a cosine.
        width: Units of each of M's hidden layers.
        map_epochs: Passes of M's training: Adam 1e-3, x .8 every tenth of them.
        map_batch: Images in each of its steps.
        top: Only the largest scores are told by the target; 0 is all of them.
        starts: Latents that are optimised on E.
        steps: Adam steps on E, without the target.
        lr: Their learning rate.
        kept: The best of them by the target's scores.
        population: These and blends of them.
        generations: Of differential evolution.
        fading: In how many last generations differences count less; see `fade`.
        space: The prior's latent space; auto is w where the prior has one.

    Source: the authors' code at commit ca5142a, main_attack.py and utils/DE.py (DE_c2b_5_bin2).
    Differs: the authors' E is a published face network (10,575 people); here the attacker trains one on the public
    images, with every image a class of its own where people are not known. Parents keep their scores, which halves the
    queries; public images are asked once, not in every epoch. Starts are ranked after their last step (theirs: before).
    log-odds of y decide rather than p_y, which orders them alike until p_y rounds to 1.
    """

    images: int = 1
    embedding: str = "resnet"
    people: int = 10_000
    embedding_epochs: int = 40
    embedding_lr: float = 0.05
    width: int = 4096
    map_epochs: int = 20
    map_batch: int = 128
    top: int = 0
    starts: int = 16
    steps: int = 20
    lr: float = 0.02
    kept: int = 10
    population: int = 32
    generations: int = 500
    fading: int = 30
    space: str = "auto"

    def __post_init__(self) -> None:
        if not 1 <= self.images <= self.kept <= self.population or self.kept > self.starts:
            raise UserError(
                "c2f: 1 <= images <= kept <= starts and kept <= population, got images "
                f"{self.images}, kept {self.kept}, starts {self.starts} and population {self.population}"
            )
        if self.kept < 3 and self.population > self.kept:
            raise UserError(f"c2f: blends have three different parents; kept must be at least 3, got {self.kept}")
        if self.people < 2:
            raise UserError(f"c2f: people must be at least 2, got {self.people}")

    def cost(self, prior: Capabilities, public: int = 0) -> Cost:
        """Starts, blends and all children; and the public images once for everybody."""
        return Cost(self.starts + self.population - self.kept + self.population * self.generations, 0, public)

    def __call__(
        self, oracle: Oracle, prior: Prior, labels: Int64[Tensor, " k"], seed: int, work: AttackContext
    ) -> Reconstructions:
        """Train E, learn M, descend on E, evolve on the target."""
        prior = searched(prior, self.space)
        public = work.images("c2f")
        p = work.once("c2f-answers", oracle, lambda: self._answers(oracle, public, work))
        own, classes = public_classes(public, self.people)
        epochs, lr = self.embedding_epochs, self.embedding_lr
        embedding = train_embedding("c2f", self.embedding, own, classes, epochs, lr, seed, oracle, work)
        inverse = network(oracle.num_classes, self.width, int(classes.max()) + 1).to(oracle.device)

        def taught() -> dict[str, Tensor]:
            return fit(inverse, embedding, vector(p, self.top), public, self.map_epochs, self.map_batch, seed, work)

        fitted = work.once("c2f-map", oracle, taught)
        inverse.load_state_dict(fitted)
        inverse.eval().requires_grad_(False)

        y, key = keys(labels, self.starts)

        def descent(rows: slice) -> Tensor:
            noise = Noise(seed, key[rows]).of("c2f")
            return self._coarse(prior, embedding, inverse, oracle.num_classes, y[rows], noise, work)

        coarse = piecewise("c2f-coarse", len(y), oracle, work, descent).reshape(len(labels), self.starts, -1)
        left = oracle.affordable(self.cost(prior).queries, 1)

        def part(rows: slice) -> Tensor:
            noise = Noise(seed, labels[rows]).of("c2f")
            return self._fine(oracle, prior, coarse[rows], labels[rows], left, noise, work).flatten(0, 1)

        few = replace(work, batch=max(1, work.batch // self.population))
        found = piecewise("c2f-fine", len(labels), oracle, few, part)
        z, y = found[:, :-1].contiguous(), labels.repeat_interleave(self.images)
        return Reconstructions(render(prior, z, y, work), y, z, found[:, -1] > 0)

    @torch.no_grad()
    def _answers(self, oracle: Oracle, public: Split, work: AttackContext) -> Float[Tensor, "n k"]:
        return torch.cat([oracle.probs(part, None) for part in public.parts(work.batch, oracle.device)])

    def _coarse(
        self,
        prior: Prior,
        embedding: Classifier,
        inverse: nn.Sequential,
        classes: int,
        y: Int64[Tensor, " n"],
        noise: Noise,
        work: AttackContext,
    ) -> Float[Tensor, "n d"]:
        """Adam on |E(G(w)) - M(certainly y)|^2 / C, what is certain drawn anew each step; the target is not asked."""
        point = Point((prior.sample(noise.of("start", 0)) + prior.sample(noise.of("start", 1))) / 2)

        def loss(z: Tensor, drawn: Noise) -> Tensor:
            with torch.no_grad():
                goal = inverse(vector(certain(y, classes, drawn.of("certain")), self.top)).float()
            return (embedding(prior.decode(z, y)).float() - goal).square().mean(dim=1)

        descend(point, loss, adam(point.parameters(), self.lr, self.starts), self.steps, noise, work=work)
        return point.z.detach()

    @torch.no_grad()
    def _fine(
        self,
        oracle: Oracle,
        prior: Prior,
        x: Float[Tensor, "k s d"],
        y: Int64[Tensor, " k"],
        left: int,
        noise: Noise,
        work: AttackContext,
    ) -> Float[Tensor, "k images d2"]:
        """Differential evolution with at most `left` queries; the last column tells who is no better than its start."""
        width, born = x.shape[2], self.population - self.kept
        score = partial(known, top=self.top)
        if left < self.starts:
            return torch.cat([x[:, : self.images], torch.ones_like(x[:, : self.images, :1])], dim=2)
        x, fitness = best_distinct(x, Fitness(oracle, prior, y, self.starts, work, score)(x), self.kept)
        start = fitness[:, : self.images]
        left -= self.starts
        if born and left >= born:
            chosen = trios(noise.of("blend"), born, self.kept)
            parents = x.gather(1, chosen.flatten(1)[..., None].expand(-1, -1, width)).reshape(*chosen.shape, width)
            strangers = [
                prior.sample(noise.of("stranger", member, draw)) for member in range(born) for draw in range(3)
            ]
            bred = blends(parents, torch.stack(strangers, dim=1).reshape(parents.shape))
            x = torch.cat([x, bred], dim=1)
            fitness = torch.cat([fitness, Fitness(oracle, prior, y, born, work, score)(bred)], dim=1)
            left -= born
        generations = min(self.generations, left // self.population) if x.shape[1] == self.population else 0
        ask = Fitness(oracle, prior, y, self.population, work, score)
        held = Held(x=x, fitness=fitness)
        for generation in work.steps(generations, held):
            x, fitness = held.x, held.fitness
            drawn = noise.of("generation", generation)
            best = x.gather(1, fitness.argmax(dim=1)[:, None, None].expand(-1, 1, width))
            pairs = (drawn.of("pairs").uniform(self.population, 4, 2) * self.population).long()
            crossed = drawn.of("crossed").uniform(self.population, width) < 0.5
            beta = fade(generation, self.generations, self.fading)
            child = trial(x, best, pairs.clamp(max=self.population - 1), beta, crossed)
            now = ask(child)
            better = now > fitness
            held.x = torch.where(better[..., None], child, x)
            held.fitness = torch.where(better, now, fitness)
        z, value = best_distinct(held.x, held.fitness, self.images)
        return torch.cat([z, (value <= start)[..., None].to(z.dtype)], dim=2)
