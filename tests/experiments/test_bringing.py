"""Published weights as targets and evaluation models: recognised, measured, their order verified, misuse told."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from shell import command
from torch import Tensor, nn
from torch.nn import functional as F

import mibench
from mibench.models.imported.naming import verify
from mibench.runtime.errors import UserError

PEOPLE, EACH = 5, 10
HEAD = ("classifier.3.weight", "classifier.3.bias")


class World(NamedTuple):
    """Pictures of people, each of a colour and a stripe of his own, and a published network that knows them."""

    root: Path
    weights: dict[str, Tensor]

    def file(self, name: str, order: list[int]) -> Path:
        """The weights in Plug & Play's format, output i being person order[i]."""
        tensors = dict(self.weights)
        for part in HEAD:
            tensors[part] = tensors[part][torch.tensor(order)]
        wrapped = {f"model.{key}": value for key, value in tensors.items()}
        torch.save({"epoch": 100, "model_state_dict": wrapped, "optimizer_state_dict": {}}, self.root / name)
        return self.root / name

    def bring(self, *words: str | Path) -> list[str]:
        """The command, as far as the data and the results."""
        folder = ["--dataset", "folder", "--set", f"data.path={self.root / 'data'}", "--set", "data.image_size=32"]
        return ["train-target", *map(str, words), *folder, "--device", "cpu", "--results", str(self.root / "results")]


def picture(person: int, number: int) -> np.ndarray:
    rng = np.random.default_rng(100 * person + number)
    x = rng.normal(0, 12, (32, 32, 3)) + 40 + 170 * np.array([person & 1, person >> 1 & 1, person >> 2 & 1])
    x[4 + 4 * person : 7 + 4 * person] = 255 - x[4 + 4 * person : 7 + 4 * person]
    return x.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    import torchvision

    root = tmp_path_factory.mktemp("bringing")
    pixels, labels = [], []
    for person in range(PEOPLE + 2):
        folder = root / "data" / (f"private/p{person}" if person < PEOPLE else f"public/s{person}")
        folder.mkdir(parents=True)
        for number in range(EACH):
            Image.fromarray(picture(person, number)).save(folder / f"{number:02d}.png")
            if person < PEOPLE:
                pixels.append(picture(person, number))
                labels.append(person)
    torch.manual_seed(0)
    net = torchvision.models.mobilenet_v3_small(num_classes=PEOPLE)
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    x = 2 * F.interpolate(x, (224, 224), mode="bilinear", antialias=True) - 1
    last, net.classifier[3] = net.classifier[3], nn.Identity()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # one pass gives the statistics of these pictures
    with torch.no_grad():
        net.train()(x)
        features = net.eval()(x)
    # The head by ridge regression on random features: a network that knows these people, without training.
    centred = features - features.mean(0)
    gram = centred @ centred.T
    ridge = gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram))
    weight = 10 * (centred.T @ torch.linalg.solve(ridge, F.one_hot(torch.tensor(labels), PEOPLE) - 1 / PEOPLE)).T
    net.classifier[3] = last
    return World(root, net.state_dict() | {HEAD[0]: weight, HEAD[1]: -weight @ features.mean(0)})


def test_a_published_checkpoint_becomes_a_target_with_its_accuracy_and_its_order_verified(world: World) -> None:
    done = command(*world.bring("--weights", world.file("mobilenet_0.9981_no_val.pth", list(range(PEOPLE)))))
    assert done.code == 0, done.err
    assert "recognised by its names and shapes as mobilenet_v3_small (torchvision's names)" in done.err
    assert "range -1 to 1" in done.err, "Plug & Play normalises so"
    assert "label order verified" in done.out
    metrics = json.loads((done.last / "metrics.json").read_text())
    assert metrics["natural_accuracy"]["value"] > 0.9
    assert (metrics["label_order"]["permuted"], metrics["label_order"]["moved"]) == (False, 0)
    card = json.loads((done.last / "run.json").read_text())
    assert (card["kind"], card["spec"]["model"], card["spec"]["origin"]) == (
        "targets",
        "mobilenet_v3_small",
        "imported",
    )


def test_a_wholly_permuted_order_is_refused_with_the_evidence_and_taken_when_matched(world: World) -> None:
    order = [*range(1, PEOPLE), 0]
    file = world.file("permuted.tar", order)
    refused = command(*world.bring("--weights", file))
    assert refused.code == 2 and "Traceback" not in refused.err
    assert "knows the data set's people in another order" in refused.error
    assert f"{PEOPLE} of {PEOPLE} people being moved (p0 is output {order.index(0)}, p1 is output 0" in refused.error
    assert "--classes matched" in refused.error
    done = command(*world.bring("--weights", file, "--classes", "matched"))
    assert done.code == 0, done.err
    assert "label order verified" in done.out, "as it was matched"


def test_python_brings_weights_in_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    top = world.root / "sets" / "weights"
    top.mkdir(parents=True)
    world.file("named.tar", list(range(PEOPLE))).rename(top / "named.tar")
    monkeypatch.setenv("MIBENCH_DATA", str(top.parent))
    given: dict[str, Any] = {"dataset": "folder", "results": world.root / "results", "device": "cpu", "progress": False}
    given["settings"] = {"data": {"path": str(world.root / "data"), "image_size": 32}}
    target = mibench.train_target(weights="named.tar", **given)
    assert target.natural_accuracy > 0.9 and target.run.spec["origin"] == "imported"
    with pytest.raises(UserError, match="recipe changes how a network is trained"):
        mibench.train_target(weights="named.tar", recipe="ppa-2022", **given)
    with pytest.raises(UserError, match="classes belong to weights"):
        mibench.train_target(classes="matched", **given)


def test_two_people_in_each_others_place_are_named(world: World) -> None:
    done = command(*world.bring("--weights", world.file("swapped.tar", [1, 0, *range(2, PEOPLE)])))
    assert done.code == 0, done.err
    assert f"label order PERMUTED for 2 of {PEOPLE} people (p0 is output 1, p1 is output 0)" in done.out
    assert "--classes matched" in done.out


def test_an_evaluation_model_is_brought_in_and_judges(world: World) -> None:
    done = command(*world.bring("--weights", world.file("judge.tar", list(range(PEOPLE))), "--evaluator"))
    assert done.code == 0, done.err
    assert done.last.parent.name == "evaluators" and "label order verified" in done.out
    metrics = json.loads((done.last / "metrics.json").read_text())
    assert metrics["distractors"] == 0 and metrics["natural_accuracy"]["value"] > 0.9
    plan = ["train", "--evaluators", f"evaluators/{done.last.name},ir", "--dry-run", "--json", *world.bring()[1:]]
    planned = command(*plan)
    assert planned.code == 0, planned.err
    assert done.last.name.rpartition("-")[2] in {one["id"] for one in json.loads(planned.out)}
    same = command(*plan, "--model", "mobilenet_v3_large")
    assert same.code == 2 and "is of the target's own family" in same.error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--weights", "w.tar", "--model", "ir152"], "holds mobilenet_v3_small .* --model says ir152"),
        (["--weights", "w.tar", "--recipe", "kedmi-2021"], "--recipe changes how a network is trained"),
        (["--weights", "w.tar", "--set", "training.epochs=3"], "training"),
        (["--weights", "nowhere.tar"], "No such file"),
        (["--classes", "matched"], "--classes belongs to --weights"),
        (["--evaluator"], "--evaluator belongs to --weights"),
    ],
)
def test_misuse_is_one_line(world: World, words: list[str], said: str) -> None:
    world.file("w.tar", list(range(PEOPLE)))
    placed = [str(world.root / word) if word.endswith(".tar") else word for word in words]
    refused = command(*world.bring(*placed))
    assert refused.code == 2
    assert re.search(said, refused.error), refused.error


# --- the order, as numbers --------------------------------------------------------------------------------------------


def answers(order: list[int], labels: Tensor, wrong: float = 0.0) -> Tensor:
    """Logits of a network whose output i is person order[i], wrong at random at a rate."""
    place = torch.tensor([order.index(person) for person in range(len(order))])[labels]
    drawn = torch.Generator().manual_seed(len(labels))
    other = torch.randint(len(order), labels.shape, generator=drawn)
    place = torch.where(torch.rand(labels.shape, generator=drawn) < wrong, other, place)
    return 5 * F.one_hot(place, len(order)).float()


def test_orders() -> None:
    labels, held = torch.arange(10).repeat(20), torch.arange(10).repeat(7)
    straight = list(range(10))
    known = verify(answers(straight, labels, 0.3), labels, answers(straight, held, 0.3), held, 10)
    assert known.moved == () and not known.permuted and known.given == known.matched < 0.9
    swapped = [1, 0, *range(2, 10)]
    known = verify(answers(swapped, labels, 0.3), labels, answers(swapped, held, 0.3), held, 10)
    assert known.moved == (0, 1) and known.permuted and known.matched > known.given + 0.05
    nothing = torch.rand(200, 10, generator=torch.Generator().manual_seed(1))
    known = verify(nothing, labels, nothing[:70].roll(3, 0), held, 10)
    assert not known.permuted, "a network that knows nobody permutes nobody"
