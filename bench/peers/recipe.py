"""A resolved recipe of Braid, as `braid config` prints it or a run's folder holds it, and its schedules."""

import math
import re

import yaml

# What the peer has one way of. A recipe that asks for another must not be trained as if it had not.
ONLY = {
    "data.format": "folder",
    "data.shuffle": True,
    "branches.0.network": "resnet",
    "branches.0.block": "basic",
    "shareUntil": None,
    "method.name": "ffl",
    "method.fusion.channels": None,
    "method.fusionChannels": None,
    "method.ensembleToFused": True,
    "method.fusedToBranch": True,
    "training.normWeightDecay": None,
    "training.initialWeights": None,
}
MISSING = object()


class Yaml12(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, in which 1e-7 is a string; in 1.2, which Braid writes, it is a number."""


Yaml12.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_recipe(path):
    """Reads YAML or JSON. Ends the program where the peer cannot train what the recipe says."""
    with open(path) as file:
        recipe = yaml.load(file, Yaml12)
    problems = [
        f"{name}: {found!r}, but this peer only has {only!r}"
        for name, only in ONLY.items()
        if (found := at(recipe, name)) not in (only, MISSING)
    ]
    if at(recipe, "method.fusion") is None:
        problems.append("method.fusion: null, but this peer always has a fused classifier")
    if at(recipe, "branches.1") is not MISSING:
        problems.append("branches: this peer only has several of one network (count)")
    if at(recipe, "training.gamma") is MISSING:
        problems.append(f"not resolved: give it what `braid config {path}` prints")
    if problems:
        raise SystemExit("\n  ".join([f"{path}:", *problems]))
    return recipe


def at(recipe, name):
    """What is at a dotted path, or MISSING."""
    for key in name.split("."):
        try:
            recipe = recipe[int(key)] if isinstance(recipe, list) else recipe[key]
        except (KeyError, IndexError, TypeError):
            return MISSING
    return recipe


def format_recipe(recipe):
    return yaml.safe_dump(recipe, sort_keys=False)


def learning_rate_at(training, epoch):
    """Multiplied by gamma once for every milestone reached."""
    return training["learningRate"] * training["gamma"] ** sum(epoch >= at for at in training["milestones"])


def distill_weight_at(ramp_up, epoch):
    """w(e) = exp(-5 (1 - clip(e, 0, E) / E)^2), constant within an epoch."""
    if ramp_up["kind"] == "constant":
        return ramp_up["value"]
    rest = 1 - min(max(epoch, 0), ramp_up["epochs"]) / ramp_up["epochs"]
    return math.exp(-5 * rest * rest)
