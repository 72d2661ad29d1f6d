"""Train a target, attack it, judge the reconstructions: on synthetic people, on a CPU."""

import mibench

settings = {"data.identities": 10, "data.public_images": 200, "data.distractors": 10, "training.epochs": 10}
target = mibench.train_target(defense="re", settings={**settings, "re.a_e": 0.4})
