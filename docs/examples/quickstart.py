"""Train a target, attack it, judge the reconstructions: ten synthetic people, under a minute on two CPU cores."""

import mibench

people = {"identities": 10, "train_images": 10, "public_images": 200, "distractors": 10, "image_size": 32}
target = mibench.train_target(defense="re", settings={"data": people, "re": {"a_e": 0.4}})
inversion = mibench.invert(target, "ppa", settings={"attack": {"steps": 20, "pool": 200}})
short = {"evaluator": {"least_steps": 200}}  # a quarter of the recipe: enough for a first look
score = mibench.score(inversion, settings=short)  # trains the evaluation models first; kept with the runs

agrees = score.headline  # open-set accuracy by the first evaluation model, with its 95% interval
print(f"natural accuracy {target.natural_accuracy:.0%}")
print(f"an evaluation model agrees on {agrees.value:.0%} [{agrees.low:.0%}, {agrees.high:.0%}] of {agrees.n} images")

table = mibench.load_results("results").scores  # a tidy data frame of everything that was scored
print(table[["attack", "natural_accuracy", "open_top1@resnet", "open_top1_low@resnet"]])

evaluators = mibench.train_evaluators(target, settings=short)  # the same on tensors, of any program, without files
again = mibench.evaluate(inversion.images, inversion.labels, target, evaluators)
print("squared distance to held-out images, in features:", again.mean("knn_heldout@ir").value)
