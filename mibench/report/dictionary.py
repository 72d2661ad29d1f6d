"""The data dictionary: what each column of each CSV file means, in which unit and range, and which way it leaks more."""

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from mibench.core import Access
from mibench.plugins import registry

__all__ = ["describe", "meaning"]

RATE, POINTS, P = "share, in [0, 1]", "difference of shares, in [-1, 1]", "p-value, in (0, 1]"

PLAIN: Mapping[str, tuple[str, str]] = {
    # what a row is about
    "protocol": ("rows that share it are comparable: same images, evaluation models and attacked people", "6 hex digits"),
    "target_label": ("the target by its defense, unique within a protocol", ""),
    "attack_label": ("the attack, unique within a target", ""),
    "dataset": ("the data set", ""),
    "dataset_settings": ("its settings that are not defaults", ""),
    "fingerprint": ("digest of all pixels of the data set", "64 hex digits"),
    "evaluators": ("the evaluation models, headline first", ""),
    "identities": ("people attacked, in groups.csv of the group; in differences.csv people compared", "count"),
    "classes": ("people the target knows", "count"),
    "unavailable": ("metrics whose weights are not on this machine", ""),
    "target": ("run of the target", "run id"),
    "model": ("architecture of the target", ""),
    "target_seed": ("training seed of the target", ""),
    "start": ("what its training started from", ""),
    "training": ("its training settings that are not the recipe's", ""),
    "defense": ("the target's defenses with their strength; `none` without any", ""),
    "family": ("the same without the strength", ""),
    "base": ("network, start and training: what an undefended twin shares", ""),
    "strength": ("value of the defense's strength", "the defense's own"),
    "attack": ("the attack; `strongest` compares each side's strongest", ""),
    "role": ("attack, floor (no optimisation: what is reached without inverting) or ceiling (real unseen images)", ""),
    "preset": ("the attack's preset, or its settings that are not defaults", ""),
    "access": ("what the attacker may ask of the target", ", ".join(access.key for access in Access)),
    "seed": ("seed of the attack", ""),
    "seeds": ("training seeds that say something of the row", "count"),
    "budget": ("most queries per identity that were allowed; empty: unlimited", "images"),
    "prior": ("what the attack searched", ""),
    "prior_preset": ("the prior's preset, or its settings that are not defaults", ""),
    "n": ("reconstructions; in differences.csv paired differences", "count"),
    "inversion": ("run of the attack", "run id"),
    "prior_run": ("run of the prior", "run id"),
    "card": ("digest of the protocol card", "hex digits"),
    "score": ("run of the score", "run id"),
    # cost
    "queries": ("images the target was asked for one identity", "images"),
    "gradient_images": ("of these, images it was differentiated for", "images"),
    "shared_queries": ("images it was asked for all identities together", "images"),
    "prior_queries": ("images it was asked while the prior was learnt", "images"),
    "prior_gradients": ("of these, images it was differentiated for", "images"),
    "seconds": ("the whole inversion, by the clock", "s"),
    "cpu_seconds": ("the whole inversion, on all cores together", "s"),
    "prior_cpu_seconds": ("learning the prior, on all cores together", "s"),
    "training_seconds": ("training of the target on all cores together, mean over seeds", "s"),
    "training_ratio": ("the same, divided by the undefended target's", "ratio"),
    # differences
    "attack_with": ("attack on the defended target", ""),
    "attack_without": ("attack on the undefended target", ""),
    "with": ("attack accuracy on the defended target, open-set, headline evaluation model", RATE),
    "without": ("attack accuracy on the undefended target, open-set, headline evaluation model", RATE),
    "difference": ("with minus without, paired over people", POINTS),
    "p": ("sign-flip test over people that the difference is zero; empty where both are identical", P),
    "p_adjusted": ("the same after Holm's correction over the tested rows of the protocol", P),
    "verdict": ("lower or higher where p_adjusted < .05; identical by construction; else no clear difference", ""),
    "detectable": ("smallest true difference shown with p < .05 in 4 of 5 repeats", POINTS),
    "identities_needed": ("people that show a true difference of this size with p < .05 in 4 of 5 repeats", "count"),
    "seeds_needed": ("training seeds that do, other people included", "count"),
    "natural_accuracy_with": ("natural accuracy of the defended target", RATE),
    "natural_accuracy_without": ("natural accuracy of the undefended target", RATE),
    "natural_accuracy_difference": ("with minus without", POINTS),
    "score_with": ("score of the attack on the defended target", "run id"),
    "score_without": ("score of the attack on the undefended target", "run id"),
    "judged_by": ("whether the row compares the strongest attacks; in tradeoff.csv the strongest attack's name", ""),
    # trade-off and curves
    "natural_accuracy": ("accuracy of the target on held-out images of its own people", RATE),
    "natural_least": ("natural accuracy of the worst training seed", RATE),
    "natural_most": ("natural accuracy of the best training seed", RATE),
    "judged_access": ("access of the strongest attack", ""),
    "judged": ("attack accuracy of the strongest attack of any access", RATE),
    "points": ("points on the curve, no defense included", "count"),
    "hypervolume": ("area of (natural accuracy, 1 - attack accuracy) that some strength or no defense reaches", RATE),
    "hypervolume_none": ("what the undefended target alone reaches", RATE),
    # people
    "rank": ("place by hit rate, equal ones by distance; 1 leaks most", "rank"),
    "identity": ("the person's name, or a number where names are withheld", ""),
    "label": ("the person's class number", ""),
    "group": ("the person's group, from groups.csv of the data; empty: none", ""),
    "hits": ("reconstructions that the headline evaluation model names as the person", "count"),
    "rate": ("attack accuracy, open-set, headline evaluation model", RATE),
    "nearest": ("squared distance of the nearest reconstruction to a private image, headline model's features", "L2^2"),
    "distance_rank": ("place by that distance; 1 leaks most", "rank"),
    "gini": ("inequality of hit rates over people: 0 all alike, 1 one person has all hits", RATE),
    "gini_by_luck": ("Gini that so few reconstructions each would give if all people were alike", RATE),
    "never": ("people who were never hit", RATE),
    "always": ("people who were hit every time", RATE),
    "gap": ("largest minus smallest attack accuracy of a group", POINTS),
    "gap_most": ("the group that leaks most", ""),
    "gap_least": ("the group that leaks least", ""),
    "gap_p": ("that memberships shuffled among people give so large a gap", P),
    "gap_p_adjusted": ("the same after Holm's correction over the targets of the protocol", P),
    # the target and the evaluation models on real images
    "target_top1": ("reconstructions that the target itself names as the person", RATE),
    "target_confidence": ("the target's softmax score of the person", RATE),
    "heldout_accuracy": ("evaluation model on unseen private images, private people only", RATE),
    "heldout_accuracy_open": ("the same where it can also answer someone else", RATE),
    "distractors": ("other people that the evaluation model knows", "count"),
    "distractors_are_public": ("whether these are the attacker's public people", ""),
    "knn_real_to_real": ("squared distance of a private image to the nearest other one of the person", "L2^2"),
}
