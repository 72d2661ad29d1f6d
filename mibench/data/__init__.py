"""Data sets, one a file: private / held-out / public images and distractors, as uint8 tensors.

A data set module has a docstring, a literal `CARD` (readable without importing the module) and one frozen dataclass
that subclasses `Source`: its fields are the choices that change the images, its `load()` returns a `Dataset`.
Shared parts, no data sets themselves: `fields` (checks of those choices), `decode` (files to pixels), `cache`
(slow results kept on disk), `show` (a labelled picture grid), `published` (what the data sets of the papers share),
`standin` (small trees of files in their formats).
"""
