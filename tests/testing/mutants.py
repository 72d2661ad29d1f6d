"""A zoo of broken plug-ins: a sound one of each kind, and for each law one change that breaks it and no other."""

ATTACK = """
import itertools, torch
from dataclasses import dataclass
from mibench.attacks.parts.latents import Point
from mibench.attacks.parts.search import descend, keys, piecewise, render
from mibench.core import Attack, Cost, Reconstructions
from mibench.core.losses import max_margin, on_logits
from mibench.runtime.rng import Noise

CARD = {
    "summary": "sound", "title": "t", "authors": "a", "venue": "v", "year": 2026, "link": "https://example.org",
    "contract": 1, "access": "white_box", "prior": "dcgan", "role": "attack", "cost": [80, 80, 0],
    "toy": {"short": {"steps": 4}},
}
PRESETS = {"quick": {}}
CALLS = itertools.count()

@dataclass(frozen=True)
class Sound(Attack):
    images: int = 2
    steps: int = 40

    def cost(self, prior, public=0):
        return Cost(self.images * self.steps, self.images * self.steps, 0)

    def __call__(self, oracle, prior, labels, seed, work):
        y, key = keys(labels, self.images)
        steps = oracle.affordable(self.steps, self.images)
        searched = []

        def part(rows):
            searched.append(rows)
            noise = Noise(seed, key[rows]).of("sound")
            point = Point(prior.sample(noise.of("start")))

            def loss(z, drawn):
                x = prior.decode(z, y[rows])
                return oracle.loss(x, y[rows], on_logits(max_margin), drawn)

            descend(point, loss, torch.optim.Adam(point.parameters(), lr=0.1), steps, noise)
            return point.z.detach()

        z = piecewise("sound", len(y), oracle, work, part)
        x = render(prior, z, y, work)
        return Reconstructions(x, y, z)
"""

SEARCH = """
import torch
from dataclasses import dataclass
from mibench.attacks.parts.search import keys
from mibench.core import Attack, Cost, Reconstructions
from mibench.runtime.rng import Noise

CARD = {
    "summary": "sound", "title": "t", "authors": "a", "venue": "v", "year": 2026, "link": "https://example.org",
    "contract": 1, "access": "black_box", "prior": "dcgan", "role": "attack",
    "toy": {"short": {"draws": 8}},
}

@dataclass(frozen=True)
class Sound(Attack):
    draws: int = 400

    def cost(self, prior, public=0):
        return Cost(self.draws, 0, 0)

    @torch.no_grad()
    def __call__(self, oracle, prior, labels, seed, work):
        draws = oracle.affordable(self.draws, 1)
        y, key = keys(labels, draws)
        z = prior.sample(Noise(seed, key).of("sound"))
        if not draws:
            z = prior.sample(Noise(seed, labels).of("sound"))
            return Reconstructions(prior.decode(z), labels, z)
        parts = [slice(i, i + work.batch) for i in range(0, len(y), work.batch)]
        own = torch.cat([oracle.probs(prior.decode(z[i]), y[i]).gather(1, y[i, None])[:, 0] for i in parts])
        best = own.reshape(len(labels), draws).argmax(1) + draws * torch.arange(len(labels))
        return Reconstructions(prior.decode(z[best]), labels, z[best])
"""

ATTACKS: dict[str, tuple[str, dict[str, str]]] = {
    "card": (ATTACK, {'"cost": [80, 80, 0]': '"cost": [81, 80, 0]'}),
    "access": (ATTACK, {'"access": "white_box"': '"access": "black_box"'}),
    "result": (ATTACK, {"Reconstructions(x,": "Reconstructions(2 * x - 1,"}),
    "seed": (ATTACK, {"Noise(seed, key[rows])": "Noise(seed + next(CALLS), key[rows])"}),
    "streams": (ATTACK, {"y, key = keys(labels, self.images)": "y, key = keys(labels, self.images); key = y"}),
    "batch": (ATTACK, {"key[rows]": "torch.arange(len(key[rows]))"}),
    "company": (
        ATTACK,
        {"y, key = keys(labels, self.images)": "y, key = keys(labels, self.images); key = key - key[0]"},
    ),
    "latents": (ATTACK, {"Reconstructions(x, y, z)": "Reconstructions(x, y, z + 0.1)"}),
    "cost": (ATTACK, {"x = render(prior, z, y, work)": "x = render(prior, z, y, work); oracle.labels(x, y)"}),
    "least access": (SEARCH, {'"access": "black_box"': '"access": "white_box"'}),
    "budget": (SEARCH, {"oracle.affordable(self.draws, 1)": "self.draws"}),
    "fair budget": (ATTACK, {"oracle.affordable(self.steps, self.images)": "self.steps"}),
    "resume": (
        ATTACK,
        {"Reconstructions(x, y, z)": "Reconstructions(x if len(searched) * work.batch >= len(y) else 0.9 * x, y)"},
    ),
    "resume under a budget": (
        ATTACK,
        {
            "searched = []": "searched = []; again = oracle.budget is not None and work.folder is not None and any("
            "work.folder.iterdir())",
            "Reconstructions(x, y, z)": "Reconstructions(0.9 * x if again else x, y)",
        },
    ),
    "kept parts": (
        ATTACK,
        {
            'piecewise("sound", len(y), oracle, work, part)': "torch.cat([part(slice(i, i + work.batch)) for i in "
            "range(0, len(y), work.batch)])"
        },
    ),
    "files": (ATTACK, {"x = render(": 'work.folder and (work.folder / "notes.txt").write_text("mine"); x = render('}),
    "untouched": (ATTACK, {"searched = []": "searched = []; prior.requires_grad_(False)"}),
    "global state": (ATTACK, {"searched = []": "searched = []; torch.rand(1)"}),
    "success": (ATTACK, {"return oracle.loss(": "return -oracle.loss("}),
    "half precision": (ATTACK, {"return oracle.loss(": "assert x.dtype == torch.float32; return oracle.loss("}),
}
"""Law -> source of a sound attack, and what is put in the place of what."""

DEFENSE = """
import itertools, torch
from dataclasses import dataclass, replace
from mibench.core import Defense
from torch import nn

CARD = {
    "summary": "sound", "title": "t", "authors": "a", "venue": "v", "year": 2026, "link": "https://example.org",
    "contract": 1, "strength": "scale", "grid": [0.1, 0.2], "adaptive": {"+eot": "averages"}, "zero": {"scale": 0.0},
}
STEPS = itertools.count(1)

class Head(nn.Module):
    def __init__(self, head, memory):
        super().__init__()
        self.head, self.memory = head, memory

    def forward(self, features):
        return self.head(features) + self.memory.shift

class Memory(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.register_buffer("shift", torch.zeros(classes))

@dataclass(frozen=True)
class Sound(Defense):
    scale: float = 0.1

    def memory(self, classes, image_shape):
        return Memory(classes)

    def transform(self, x, noise):
        if not self.scale:
            return x
        return (x + self.scale * noise.normal(*x.shape[1:])).clamp(0, 1)

    def batch(self, batch, step):
        if self.scale:
            step.memory.shift.add_(self.scale / 100)
        return batch

    def deploy(self, model, memory):
        if self.scale:
            model.head = Head(model.head, memory)
        return model
"""

DEFENSES: dict[str, tuple[str, dict[str, str]]] = {
    "card": (DEFENSE, {'"grid": [0.1, 0.2]': '"grid": [0.1]'}),
    "trains": (DEFENSE, {"self.memory.shift\n": "self.memory.shift / 0.0\n"}),
    "seed": (DEFENSE, {"noise.normal(*x.shape[1:])": "(noise.normal(*x.shape[1:]) + next(STEPS))"}),
    "half precision": (
        DEFENSE,
        {
            "return self.head(features) + self.memory.shift\n": "logits = self.head(features)\n        assert "
            "logits.dtype == torch.float32\n        return logits + self.memory.shift\n"
        },
    ),
    "zero": (DEFENSE, {"if not self.scale:\n            return x": "if not self.scale:\n            return 0.9 * x"}),
    "strength": (DEFENSE, {"scale: float = 0.1": "scale: float = 0.0"}),
    "batch": (DEFENSE, {"self.memory.shift\n": "self.memory.shift + features.mean(0).mean()* torch.arange(3.0)\n"}),
    "resume": (
        DEFENSE,
        {
            'self.register_buffer("shift", torch.zeros(classes))': "self.steps = 0; "
            'self.register_buffer("shift", torch.zeros(classes))',
            "step.memory.shift.add_(self.scale / 100)": "step.memory.steps += 1; "
            "step.memory.shift[0] += step.memory.steps / 100",
        },
    ),
    "stacks": (
        DEFENSE,
        {
            "return (x + self.scale": "blocks = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4); mean, spread = "
            "(one.repeat_interleave(2, 2).repeat_interleave(2, 3) for one in (blocks.mean(-1), blocks.std(-1))); "
            "x = 0.5 + 0.1 * (x - mean) / spread; return (x + self.scale"
        },
    ),
    "file": (
        DEFENSE,
        {
            'self.register_buffer("shift", torch.zeros(classes))': "self.shift = torch.zeros(classes)",
            "step.memory.shift.add_(self.scale / 100)": "step.memory.shift[0] = 5.0",
        },
    ),
    "global state": (
        DEFENSE,
        {"return Memory(classes)": 'import os; os.environ["SOUND"] = str(next(STEPS)); return Memory(classes)'},
    ),
}

PRIOR = """
import itertools, torch
from dataclasses import dataclass
from mibench.core import Prior, PriorTrainer
from torch import nn

CARD = {
    "summary": "sound", "title": "t", "authors": "a", "venue": "v", "year": 2026, "link": "https://example.org",
    "contract": 1, "critic": "none", "domain": "public", "toy": {"size": 8},
}
CALLS = itertools.count()

class Drawn(Prior):
    def __init__(self, shape):
        super().__init__()
        self.image_shape, self.latent_dim = shape, 4
        self.layer = nn.Linear(4, shape[0] * shape[1] * shape[2])
        self.register_buffer("mean", torch.zeros(1))

    def decode(self, z, y=None):
        x = self.layer(z) + self.mean
        return torch.sigmoid(x).reshape(-1, *self.image_shape)

@dataclass(frozen=True)
class Sound(PriorTrainer):
    rate: float = 0.1

    def build(self, image_shape, num_classes, public):
        return Drawn(image_shape)

    def train(self, prior, public, oracle, session):
        start = 0
        with session.reporter.task("toy", 4, "steps") as bar:
            for step in range(start, 4):
                prior.mean.add_(public.images.float().mean() / 2550)
                bar.advance()
        return [{"mean": float(prior.mean)}]
"""

PRIORS: dict[str, tuple[str, dict[str, str]]] = {
    "card": (PRIOR, {'"critic": "none"': '"critic": "wgan"'}),
    "learns": (PRIOR, {"/ 2550)": "/ 0.0)"}),
    "images": (PRIOR, {"torch.sigmoid(x)": "torch.tanh(x)"}),
    "deterministic": (PRIOR, {"self.layer(z) + self.mean": "self.layer(z) + self.mean + 0.1 * next(CALLS)"}),
    "company": (PRIOR, {"self.layer(z) + self.mean": "self.layer(z) + self.mean + z.mean()"}),
    "gradients": (PRIOR, {"self.layer(z)": "self.layer(z.round())"}),
    "critic": (
        PRIOR,
        {
            '"critic": "none"': '"critic": "wgan"',
            "class Drawn(Prior):": 'class Drawn(Prior):\n    critic_kind = "wgan"\n\n    def critic(self, x):\n'
            "        return x.flatten(1).mean(1) - x.mean()\n",
        },
    ),
    "seed": (PRIOR, {"/ 2550)": "/ 2550 + next(CALLS))"}),
    "resume": (
        PRIOR,
        {
            "start = 0": "start = int(session.checkpoint is not None and session.checkpoint.exists())",
            "bar.advance()": "session.checkpoint and session.checkpoint.touch(); bar.advance()",
        },
    ),
    "file": (PRIOR, {'self.register_buffer("mean", torch.zeros(1))': "self.mean = torch.zeros(1)"}),
    "public images": (PRIOR, {"start = 0": "start = 0; public.images[0, 0, 0, 0] ^= 1"}),
    "global state": (PRIOR, {"start = 0": "start = 0; import random; random.random()"}),
}

DATA = """
import itertools, torch
from dataclasses import dataclass
from mibench.core import Dataset, Source, Split
from mibench.runtime.rng import Noise

CARD = {
    "summary": "sound", "images": "many", "identities": "3", "licence": "none", "link": "", "year": 2026, "contract": 1,
}
CALLS = itertools.count()

@dataclass(frozen=True)
class Sound(Source):
    seed: int = 0

    def load(self, reporter=None):
        def split(role, count, people=3):
            labels = torch.arange(count) % people
            pixels = Noise(self.seed, torch.arange(count)).of(role).uniform(3, 8, 8)
            return Split((255 * pixels).to(torch.uint8), labels)
        train, heldout = split("train", 12), split("heldout", 6)
        public, others = split("public", 5), split("others", 4)
        return Dataset("sound", ("a", "b", "c"), train, heldout, public, others, False, False, {})
"""

SOURCES: dict[str, tuple[str, dict[str, str]]] = {
    "card": (DATA, {'"licence": "none", ': ""}),
    "splits": (DATA, {'split("heldout", 6)': 'split("heldout", 6, 2)'}),
    "same bytes": (DATA, {"Noise(self.seed,": "Noise(self.seed + next(CALLS),"}),
    "apart": (DATA, {'split("heldout", 6)': 'split("train", 6)'}),
    "shape": (
        DATA,
        {"    def load(": "    def shape(self):\n        return super().shape()._replace(public=9)\n\n    def load("},
    ),
    "identity": (DATA, {"    def load(": "    def identity(self):\n        return {}\n\n    def load("}),
    "global state": (DATA, {"train, heldout =": "import random; random.random(); train, heldout ="}),
}

METRIC = """
import torch
from mibench.metrics.declaration import Direction, Metric, Need, Unit
from mibench.metrics.inputs import images

CARD = {
    "summary": "sound", "title": "t", "authors": "a", "venue": "v", "year": 2026, "link": "https://example.org",
    "contract": 1,
}
METRICS = (
    Metric(
        "nearest", ("near", "train"), Unit.NUMBER, Direction.LOWER, "distance in pixels", "[0, 100]",
        needs=(Need.TRAIN,),
    ),
)

def nearest(x, labels, references, reference_labels):
    x, references = images("nearest", x).flatten(1), images("nearest", references).flatten(1)
    own = labels[:, None] == reference_labels[None]
    assert own.any(dim=1).all()
    d = torch.stack([(one - references).norm(dim=1) for one in x])
    return d.masked_fill(~own, torch.inf).amin(dim=1)

def examples():
    x = torch.zeros(1, 3, 2, 2)
    return [("nearest", (x, torch.tensor([0]), x + 0.5, torch.tensor([0])), [12**0.5 / 2])]
"""

METRICS: dict[str, tuple[str, dict[str, str]]] = {
    "card": (METRIC, {'"venue": "v"': '"venue": ""'}),
    "declaration": (METRIC, {'"distance in pixels"': '"distance in pixels."'}),
    "values": (METRIC, {'"[0, 100]"': '"[0, 1]"'}),
    "known values": (METRIC, {"12**0.5 / 2": "12**0.5"}),
    "order": (METRIC, {".amin(dim=1)\n": ".amin(dim=1) + torch.linspace(0, 1e-2, len(x))\n"}),
    "company": (METRIC, {".amin(dim=1)\n": ".amin(dim=1) * (1 + 0.01 * (len(x) > 1))\n"}),
    "own references": (METRIC, {"    return d.masked": "    own = own | True\n    return d.masked"}),
    "direction": (METRIC, {"Direction.LOWER": "Direction.HIGHER"}),
    "refusals": (METRIC, {"    assert own.any(dim=1).all()\n": "    own[~own.any(dim=1)] = True\n"}),
    "global state": (METRIC, {"    own = labels": "    import random; random.random()\n    own = labels"}),
}

ZOO = {"attack": ATTACKS, "defense": DEFENSES, "prior": PRIORS, "data": SOURCES, "metric": METRICS}
