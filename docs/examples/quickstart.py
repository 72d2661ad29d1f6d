"""Train a target, attack it, judge the reconstructions: ten synthetic people, under a minute on two CPU cores."""

import mibench

people = {"identities": 10, "train_images": 10, "public_images": 200, "distractors": 10, "image_size": 32}
target = mibench.train_target(defense="re", settings={"data": people, "re": {"a_e": 0.4}})
inversion = mibench.invert(target, "ppa", settings={"attack": {"steps": 20, "pool": 200}})
short = {"evaluator": {"least_steps": 200}}  # a quarter of the recipe: enough for a first look
score = mibench.score(inversion, settings=short)  # trains the evaluation models first; kept with the runs

alike = score.headline  # likeness: named by an evaluation model and let through by an independent gate, with interval
print(f"natural accuracy {target.natural_accuracy:.0%}")
print(f"{alike.value:.0%} [{alike.low:.0%}, {alike.high:.0%}] of {alike.n} images are like the person")

table = mibench.load_results("results").scores  # a tidy data frame of everything that was scored
print(table[["attack", "natural_accuracy", "likeness", "likeness_low", "open_top1@resnet"]])

evaluators = mibench.train_evaluators(target, settings=short)  # the same on tensors, of any program, without files
again = mibench.evaluate(inversion.images, inversion.labels, target, evaluators)
print("squared distance to held-out images, in features:", again.mean("knn_heldout@ir").value)
