"""The stages: train_target, train_prior, invert, score. Each has `plan(...) -> Run` and `work(run, engine, reporter)`.

A plan is cheap and touches no data; the work reads its parents' files, so stages may run in different processes, on
different days, or on different machines.
"""
