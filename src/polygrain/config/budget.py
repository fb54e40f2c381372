"""Equal compute: how many optimiser steps a budget of encoder-pass units buys a method; or a number of epochs."""

from polygrain.config.compose import Config


def steps(config: Config) -> int:
    """Optimiser steps of a run; 0 for a method that trains nothing.

    With `pretrain.encoder_passes`: what the budget leaves after the method's passes before the first step, over units
    per image times batch, rounded down. With `pretrain.epochs`: that many passes of whole batches.
    """
    pretrain, method = config["pretrain"], config["method"]
    units = float(method["encoder_passes"])
    if units == 0:
        return 0
    if pretrain["epochs"] is not None:
        return int(pretrain["epochs"] * (pretrain["images"] // pretrain["batch"]))
    left = pretrain["encoder_passes"] - float(method["start_passes"]) * pretrain["images"]
    return max(int(left // (units * pretrain["batch"])), 0)


def minutes(config: Config) -> float:
    """Declared minutes of a run's pre-training: `cost.pretrain.minutes`, or its share by encoder passes, to 0.1."""
    cost = config["cost"]["pretrain"]
    if cost.get("encoder_passes") is None:
        return float(cost["minutes"])
    return round(float(cost["minutes"]) * facts(config)["encoder_passes"] / float(cost["encoder_passes"]), 1)


def facts(config: Config) -> dict[str, float]:
    """What a table prints beside a run: images seen, however many views each had, steps, encoder-pass units spent."""
    method, taken = config["method"], steps(config)
    images = taken * config["pretrain"]["batch"]
    before = float(method["start_passes"]) * config["pretrain"]["images"]
    passes = before + images * float(method["encoder_passes"])
    return {"images_seen": images, "steps": taken, "encoder_passes": passes}
