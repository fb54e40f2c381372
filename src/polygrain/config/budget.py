"""Equal compute: how many optimiser steps a budget of encoder-pass units buys a method."""

from polygrain.config.compose import Config


def steps(config: Config) -> int:
    """Optimiser steps: budget / (units per image x batch), rounded down; 0 for a method that trains nothing."""
    units = float(config["method"]["encoder_passes"])
    if units == 0:
        return 0
    return int(config["pretrain"]["encoder_passes"] // (units * config["pretrain"]["batch"]))


def facts(config: Config) -> dict[str, float]:
    """What a table prints beside a run: images seen, however many views each had, and encoder-pass units spent."""
    images = steps(config) * config["pretrain"]["batch"]
    return {"images_seen": images, "encoder_passes": images * float(config["method"]["encoder_passes"])}
