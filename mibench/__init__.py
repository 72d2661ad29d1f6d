"""mibench: how much of a classifier's private training images a model-inversion attack can reconstruct."""

__version__ = "0.1.0"
