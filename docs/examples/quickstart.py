"""Train a target, attack it, judge the reconstructions: ten synthetic people, a minute on two CPU cores."""

import sys

import mibench

results = sys.argv[1] if len(sys.argv) > 1 else "results"
data = {"identities": 10, "public_images": 200, "distractors": 10}

target = mibench.train_target(defense="re", settings={"data": data, "re": {"a_e": 0.4}}, results=results)
inversion = mibench.invert(target, "ppa", settings={"attack": {"steps": 20, "pool": 200}})
score = mibench.score(inversion)  # trains the evaluation models first, and is kept with the runs
print(f"natural accuracy {target.natural_accuracy:.0%}, headline {score.headline}")

table = mibench.load_results(results).scores  # a tidy data frame of everything that was scored
print(table[["attack", "natural_accuracy", "open_top1@resnet", "open_top1_low@resnet"]])

evaluators = mibench.train_evaluators(target)  # the same on tensors, of any program, without files
again = mibench.evaluate(inversion.images, inversion.labels, target, evaluators)
print(again.mean("knn_heldout@ir"))
