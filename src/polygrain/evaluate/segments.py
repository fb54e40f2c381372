"""Segments: what k-means clusters of cells tell about the place of a cell and about the class of its image.

The cells of the frozen maps of the first test images are clustered by spherical k-means, as in the protocol
`clustering`, without labels. In bits: `entropy`, how evenly the clusters are used (at most log2 of their number);
`position`, the mutual information of a cell's cluster and its row and column; `class`, that of its cluster and its
image's class. They describe at which grain a map speaks: clusters that follow the place know nothing of the content,
clusters that follow the class are the same all over an image. Neither is merit, so no direction is better.

Legend: B images, N cells of all images, D width, K clusters, P cells of a map.
"""

import math

import numpy as np

from polygrain.evaluate.clustering import assign, contingency, k_means
from polygrain.evaluate.given import Encoder
from polygrain.evaluate.result import Measure, Number, Result
from polygrain.evaluate.sphere import on_grid
from polygrain.evaluate.store import Integers
from polygrain.provenance.errors import UserError

BITS = Measure("bits", "none", decimals=2)


def evaluate(encoder: Encoder, *, images: int, clusters: int, restarts: int, iterations: int, seed: int) -> Result:
    """Cluster the cells of every data set.

    images: of the test split, from its front. clusters, restarts, iterations: of k-means, of whose starts the one of
    the largest mean cosine counts. seed: of the starts, one for all runs. Raises UserError for values out of range and
    for more clusters than cells.
    """
    if min(images, clusters, restarts, iterations) < 1:
        raise UserError(
            f"segments: images ({images}), clusters ({clusters}), restarts ({restarts}) and iterations ({iterations})"
            " must be positive"
        )
    values = dict[str, Number]()
    for name in encoder.datasets:
        positions = encoder.positions(name, "test")[:images]
        found = [views.tokens.cpu().numpy() for _, views in encoder.encoded(name, positions)]
        tokens_BPD = np.concatenate(found)
        count, places = tokens_BPD.shape[:2]
        if clusters > count * places:
            raise UserError(
                f"segments: {clusters} clusters are asked of {count * places} cells of {name}; lower clusters"
            )
        rows_ND = on_grid(tokens_BPD.reshape(count * places, -1))
        starts = [k_means(rows_ND, clusters, iterations, (seed, start)) for start in range(restarts)]
        best = max(range(restarts), key=lambda start: (starts[start].objective, -start))
        cluster_N = assign(rows_ND, starts[best].centres)
        place_N = np.tile(np.arange(places), count)
        class_N = np.repeat(encoder.labels(name, positions), places)
        measured = {
            "entropy": information(contingency(cluster_N, cluster_N, clusters, clusters)),
            "position": information(contingency(cluster_N, place_N, clusters, places)),
            "class": information(contingency(cluster_N, class_N, clusters, encoder.classes(name))),
        }
        values |= {f"{name}/{metric}": Number(bits, BITS) for metric, bits in measured.items()}
    return Result(values)


def information(counts: Integers) -> float:
    """The mutual information of two partitions, in bits, from the table [K, C] of how many cells lie in each pair."""
    rows, columns, total = counts.sum(axis=1), counts.sum(axis=0), int(counts.sum())
    terms = [
        int(counts[row, column])
        / total
        * math.log2(int(counts[row, column]) * total / int(rows[row] * columns[column]))
        for row, column in zip(*np.nonzero(counts), strict=True)
    ]
    return max(0.0, math.fsum(terms))
