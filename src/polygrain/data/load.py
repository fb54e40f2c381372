"""Data sets by format, loaded by name: a run on pixels does not depend on the code for encoded images."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from polygrain.data.packed import MANIFEST, DataSet
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import read_json

if TYPE_CHECKING:
    from polygrain.config.typed import ChannelMoments

FORMATS = {1: "pixels", 2: "encoded"}
"""`format` of a manifest -> the word in params/dataset, which is also the module's name in the rooms that have both."""
_MODULES = {1: "polygrain.data.packed", 2: "polygrain.data.encoded"}


def open_data(root: Path) -> DataSet:
    """Open a packed data set of either format. Raises UserError naming the file that is not what was packed."""
    data: DataSet = import_module(_MODULES[read_json(root / MANIFEST)["format"]]).OPEN(root)
    return data


def format_of(data: DataSet) -> str:
    """`pixels` or `encoded`."""
    return FORMATS[data.manifest["format"]]


def statistics(data: DataSet, given: "ChannelMoments | None") -> tuple[list[float], list[float]]:
    """Mean and std per channel that views are normalised with: those given, else the data set's own.

    Raises UserError when their number is not that of the channels.
    """
    if given is None:
        return data.mean, data.std
    mean, std = list(given["mean"]), list(given["std"])
    if not len(mean) == len(std) == len(data.mean):
        raise UserError(
            f"statistics: {len(mean)} means and {len(std)} deviations for the {len(data.mean)} channels of"
            f" {data.manifest['name']}; give one of each per channel"
        )
    return mean, std
