"""The vote of `knn` on the features of another network of the checkpoint than the one that is evaluated elsewhere.

Mugs's teacher is evaluated; its student, of which the teacher is a moving average, has its features extracted here.
"""

from typing import Literal

from polygrain.evaluate import knn
from polygrain.evaluate.features import features_of
from polygrain.evaluate.given import Encoder
from polygrain.evaluate.result import Result
from polygrain.evaluate.store import Features


def evaluate(
    encoder: Encoder,
    *,
    prefix: str,
    spaces: list[Literal["raw", "whitened"]],
    k: list[int],
    temperature: float,
    shrinkage: float,
    byte_budget: int,
) -> Result:
    """Extract the features of every data set and classify its test split.

    prefix: of the network's tensors in the checkpoint. The other values are those of `knn`. Raises UserError as `knn`
    does, and for a prefix under which no network of this backbone lies.
    """
    other = encoder.of_network(prefix)
    return knn.evaluate(
        Features({name: features_of(other, name) for name in other.datasets}),
        spaces=spaces,
        k=k,
        temperature=temperature,
        shrinkage=shrinkage,
        byte_budget=byte_budget,
    )
