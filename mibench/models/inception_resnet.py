"""InceptionResnetV1 of facenet-pytorch as a classifier at 160 px: MIRROR's target, and a family of its own.

Images x in [0, 1] become (255 x - 127.5) / 128; the features are the output of the last batch norm, 512 numbers before
the L2 normalisation that the recogniser would add.

References:
    | FaceNet: A Unified Embedding for Face Recognition and Clustering (Schroff et al., 2015)
    | https://arxiv.org/abs/1503.03832
    | facenet-pytorch (Esler, 2019)
    | https://github.com/timesler/facenet-pytorch
"""

from torch import nn

from mibench.models.base import Classifier, Prepare, no_weights, side_of

__all__ = ["ARCHITECTURES", "CARD", "build"]

CARD = {
    "summary": "InceptionResnetV1 of facenet-pytorch at 160 px, 512 features",
    "title": "FaceNet: A Unified Embedding for Face Recognition and Clustering",
    "authors": "Schroff, Kalenichenko and Philbin",
    "venue": "CVPR",
    "year": 2015,
    "link": "https://arxiv.org/abs/1503.03832",
    "family": "inception_resnet",
    "offers": ["convolutions"],
}
ARCHITECTURES = ("inception_resnet_v1",)

SIDE, FEATURES = 160, 512
LEAST = 75
"""Side from which its last stage still has a pixel."""


def build(name: str, num_classes: int, image_shape: tuple[int, int, int], pretrained: bool = False) -> Classifier:
    """The network from noise; grey images are repeated.

    Raises:
        UserError: `pretrained` was asked for; it has face weights, which are given as a file.
    """
    from facenet_pytorch import InceptionResnetV1

    if pretrained:
        raise no_weights(name)
    net = InceptionResnetV1(pretrained=None, classify=True, num_classes=num_classes)
    net.logits = nn.Identity()
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    prepare = Prepare(image_shape, [127.5 / 255] * 3, [128 / 255] * 3, side_of(SIDE, LEAST))
    return Classifier(prepare, net, nn.Linear(FEATURES, num_classes), FEATURES)
