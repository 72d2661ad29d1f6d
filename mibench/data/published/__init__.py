"""What the published data sets share: from the authors' files to pixels on disk, once.

`needs` says which files, from where, under which licence; `stores` reads a folder, a zip or a tar; `crops` and `align`
are the published crops, to the pixel; `splits` the published splits; `packs` decodes with all cores into one
memory-mapped file; `source` is the data set made of it; `publics` are the image sets that only an attacker has.
What a worker process imports (`worker`, `crops`, `align`, `stores`) needs no torch.
"""
