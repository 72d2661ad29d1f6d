"""Defenses against model inversion, one a file."""
