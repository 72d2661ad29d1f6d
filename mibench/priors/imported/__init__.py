"""Generators that somebody else trained: their files read as tensors and plain values, and nothing in them is run.

`pickles` opens a pickle without calling what it names, `nvidia` and `rosinality` say which tensor is which, `opening`
tells the formats apart.
"""
