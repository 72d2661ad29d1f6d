"""A model of the user's own as a target: from a file, a function or a server to a `Classifier` of images in [0, 1].

`sources` says what was given, `opening` makes it answer, `probe` finds out what it wants by asking it about pictures
whose people are known, `network` puts the two together.
"""
