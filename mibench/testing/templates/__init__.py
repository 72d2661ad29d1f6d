"""A complete plug-in of each kind: the examples of docs/extend, and what `mibench new` writes under another name."""
