"""The batch that a method receives."""

import torch

from polygrain.views.batch import Batch, draw_views, finish_batch, make_batch
from polygrain.views.crop import cut
from polygrain.views.recipe import Recipe

GLOBAL = Recipe.from_mapping({"size": 32, "scale": [0.2, 1.0], "ratio": [0.75, 1.25], "flip": 0.5})
LOCAL = Recipe.from_mapping({"size": 16, "scale": [0.1, 0.4], "ratio": [0.75, 1.25], "flip": 0.5})


def _batch(recipes: list[Recipe], rows: list[int], epoch: int = 0) -> Batch:
    images = torch.randint(0, 256, (50, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    indices = torch.tensor(rows)
    return make_batch(images[indices], indices % 10, indices, recipes, seed=5, epoch=epoch, mean=[0.3], std=[0.35])


def test_views_geometry_and_labels_keep_their_order() -> None:
    rows = [7, 3, 42]
    batch = _batch([GLOBAL, GLOBAL, LOCAL], rows)
    assert [tuple(view.shape) for view in batch.views] == [(3, 1, 32, 32), (3, 1, 32, 32), (3, 1, 16, 16)]
    assert batch.indices.tolist() == rows
    assert batch.labels_for_monitoring.tolist() == [7, 3, 2]
    assert not torch.equal(batch.views[0], batch.views[1])
    for geometry in batch.geometry:
        assert geometry.source == (28, 28)
        assert geometry.box.shape == (3, 4)
        assert geometry.box.dtype == torch.int64
        assert geometry.flip.dtype == torch.bool


def test_a_samples_views_are_the_same_in_another_batch_and_other_in_another_epoch() -> None:
    batch, other = _batch([GLOBAL, LOCAL], [7, 3, 42]), _batch([GLOBAL, LOCAL], [42, 11])
    for view, again in zip(batch.views, other.views, strict=True):
        assert torch.equal(view[2], again[0])
    assert torch.equal(batch.geometry[1].box[2], other.geometry[1].box[0])
    assert not torch.equal(batch.views[0], _batch([GLOBAL, LOCAL], [7, 3, 42], epoch=1).views[0])


def test_a_view_is_the_same_whatever_comes_after_it() -> None:
    assert torch.equal(_batch([GLOBAL], [1, 2]).views[0], _batch([GLOBAL, LOCAL], [1, 2]).views[0])


def test_no_generator_is_touched() -> None:
    before = torch.random.get_rng_state()
    _batch([GLOBAL, LOCAL], [1, 2, 3])
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_batch_finished_from_cut_views_is_the_batch_up_to_rounding() -> None:
    """Images of one size by the way of images of many: same draws and geometry, pixels within one level of 255."""
    recipe = Recipe.from_mapping(
        {"size": 32, "scale": [0.2, 1.0], "ratio": [0.75, 1.25], "flip": 0.5}
        | {"jitter": {"probability": 0.8, "brightness": 0.4}, "solarise": {"probability": 0.0}}
    )
    images = torch.randint(0, 256, (50, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    indices, source = torch.tensor([7, 3, 42]), torch.tensor([[28, 28]] * 3)
    made = make_batch(
        images[indices], indices % 10, indices, [recipe, LOCAL], seed=5, epoch=1, mean=[0.3] * 3, std=[0.5] * 3
    )
    drawn = draw_views([recipe, LOCAL], indices, seed=5, epoch=1, source=source)
    cuts = [
        torch.stack([cut(images[i], b, f, r.size) for i, b, f in zip(indices, d.box.tolist(), d.flip, strict=True)])
        for d, r in zip(drawn, [recipe, LOCAL], strict=True)
    ]
    finished = finish_batch(
        cuts, drawn, indices % 10, indices, [recipe, LOCAL], source=source, mean=[0.3] * 3, std=[0.5] * 3
    )
    for view, other in zip(finished.views, made.views, strict=True):
        assert 0 < (view - other).abs().max() < 1.5 / 255 / 0.5 * 1.4
    for one, other in zip(finished.geometry, made.geometry, strict=True):
        assert torch.equal(one.box, other.box)
        assert torch.equal(one.flip, other.flip)
        assert torch.equal(torch.as_tensor(one.source), source)
        assert torch.equal(one.to_source(torch.ones(3, 4, 2), 32), other.to_source(torch.ones(3, 4, 2), 32))
    assert torch.equal(finished.indices, made.indices)
    assert torch.equal(finished.labels_for_monitoring, made.labels_for_monitoring)
