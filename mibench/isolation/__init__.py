"""`--isolate`: the attack in a sealed process, the target behind a pipe; `guard` is the outside, `cell` the inside."""
