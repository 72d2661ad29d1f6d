"""A model of the user's own as a target: from a file, a function or a server to a `Classifier` of images in [0, 1].

`sources` says what was given, `opening` makes it answer, `probe` finds out what it wants by asking it about pictures
whose people are known, `network` puts the two together.

How others take a model: foolbox and the Adversarial Robustness Toolbox want bounds, mean, std and the number of classes
from the user, LeakPro a class, its arguments and a handler in Python. A wrong normalisation is an unnoticed weak
target there; here it is measured.

References:
    | Foolbox: A Python toolbox to benchmark the robustness of machine learning models (Rauber et al., 2017)
    | https://arxiv.org/abs/1707.04131, PyTorchModel(bounds, preprocessing)
    | Adversarial Robustness Toolbox (Nicolae et al., 2018)
    | https://arxiv.org/abs/1807.01069, PyTorchClassifier(clip_values, preprocessing, nb_classes)
"""
