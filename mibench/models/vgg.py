"""VGG16-BN for 64-pixel images: the field's commonest low-resolution target.

torchvision's VGG16-BN convolutions reduce 64x64 to 512x2x2 = 2,048 values; a BatchNorm1d with a frozen bias gives the
features, a linear layer the logits. Images enter in [0, 1] as they are (mean 0, std 1), as in the published targets.

References:
    | Very Deep Convolutional Networks for Large-Scale Image Recognition (Simonyan and Zisserman, 2014)
    | https://arxiv.org/abs/1409.1556
    | The Secret Revealer: Generative Model-Inversion Attacks Against Deep Neural Networks (Zhang et al., 2020)
    | https://arxiv.org/abs/1911.07135
"""

from collections import OrderedDict

from torch import nn

from mibench.models.base import Classifier, Prepare

__all__ = ["ARCHITECTURES", "CARD", "build"]

CARD = {
    "summary": "VGG16-BN at 64 px with 2,048 features: the field's commonest low-resolution target",
    "title": "Very Deep Convolutional Networks for Large-Scale Image Recognition",
    "authors": "Simonyan and Zisserman",
    "venue": "ICLR",
    "year": 2015,
    "link": "https://arxiv.org/abs/1409.1556",
    "family": "vgg",
    "offers": ["convolutions"],
}
ARCHITECTURES = ("vgg16_bn64",)


def build(name: str, num_classes: int, image_shape: tuple[int, int, int], pretrained: bool = False) -> Classifier:
    """VGG16-BN on images resized to 64 px, grey ones repeated; `pretrained` fills the convolutions from ImageNet.

    Raises:
        UserError: The ImageNet weights cannot be had.
    """
    from torchvision.models import VGG16_BN_Weights
    from torchvision.models.vgg import cfgs, make_layers

    from mibench.models.torchvision_net import imagenet_state

    convolutions = make_layers(cfgs["D"], batch_norm=True)
    for layer in convolutions:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.ReLU):
            layer.inplace = False
    if pretrained:
        state = imagenet_state("vgg16_bn", VGG16_BN_Weights.DEFAULT)
        prefix = "features."
        convolutions.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    norm = nn.BatchNorm1d(2048)
    norm.bias.requires_grad_(False)
    trunk = nn.Sequential(OrderedDict(convolutions=convolutions, flatten=nn.Flatten(), norm=norm))
    return Classifier(Prepare(image_shape, [0.0] * 3, [1.0] * 3, size=64), trunk, nn.Linear(2048, num_classes), 2048)
