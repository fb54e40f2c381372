"""A coin per image chooses between two recipes; what is made is bit for bit what the chosen recipe alone would make."""

from typing import Any

import pytest
import torch
from torch import Tensor

from polygrain.config.recipe_models import check_recipes
from polygrain.provenance.errors import UserError
from polygrain.views import batch as batch_module
from polygrain.views.batch import Batch, draw_views, finish_batch, make_batch
from polygrain.views.crop import cut
from polygrain.views.draw import MixedParameters
from polygrain.views.recipe import ViewRecipe, read_recipes

CROP: dict[str, Any] = {"size": 24, "scale": [0.3, 1.0], "ratio": [0.75, 1.3333333333333333], "flip": 0.5}
SMALL = {**CROP, "size": 12, "scale": [0.1, 0.4]}
STRONG = {
    "randaugment": {
        "probability": 0.5, "operations": ["rotate", "contrast", "invert"], "count": 2, "magnitude": 6, "deviation": 0.5
    },
    "erasing": {"probability": 0.25, "area": [0.02, 0.33], "ratio": [0.3, 3.3]},
}  # fmt: skip
MAPPING: dict[str, Any] = {
    "weak": {**CROP, "jitter": {"probability": 0.8, "brightness": 0.4}},
    "strong": {**CROP, "scale": [0.2, 0.9], **STRONG},
    "other": {**CROP, "solarise": {"probability": 0.5}},
    "shared": {"mixed": {"weak": "weak", "strong": "strong", "probability": 0.5, "coin": "shared"}},
    "shared_other": {"mixed": {"weak": "other", "strong": "strong", "probability": 0.5, "coin": "shared"}},
    "weak_local": SMALL,
    "strong_local": {**SMALL, **STRONG},
    "own": {"mixed": {"weak": "weak_local", "strong": "strong_local", "probability": 0.5, "coin": "own"}},
}
RECIPES = read_recipes(MAPPING)
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def _images(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _batch(names: tuple[str, ...], rows: Tensor, **changes: Any) -> Batch:
    counters = {"seed": 5, "epoch": 1} | changes
    recipes: list[ViewRecipe] = [RECIPES[name] for name in names]
    return make_batch(_images(64)[rows], rows % 3, rows + 100, recipes, mean=MEAN, std=STD, **counters)


def _coin(batch: Batch, view: int) -> Tensor:
    coin = batch.weak[view]
    assert coin is not None
    return coin


@pytest.mark.parametrize(
    ("name", "weak", "strong"), [("shared", "weak", "strong"), ("own", "weak_local", "strong_local")]
)
def test_each_image_is_that_of_the_recipe_its_coin_chose(name: str, weak: str, strong: str) -> None:
    rows = torch.arange(64)
    mixed = _batch(("other", name), rows)
    sides = [_batch(("other", side), rows) for side in (strong, weak)]
    for row, coin in enumerate(_coin(mixed, 1).tolist()):
        assert torch.equal(mixed.views[1][row], sides[coin].views[1][row])
        assert torch.equal(mixed.geometry[1].box[row], sides[coin].geometry[1].box[row])
        assert torch.equal(mixed.geometry[1].flip[row], sides[coin].geometry[1].flip[row])
    assert not torch.equal(sides[0].geometry[1].box, sides[1].geometry[1].box) or name == "own"
    assert 16 < _coin(mixed, 1).sum() < 48


def test_a_side_may_overlap_the_first_view() -> None:
    """Each image's side looks at that image's own first box."""
    mapping = {**MAPPING, "weak": {**MAPPING["weak"], "overlap": {"minimum": 0.5}}}
    recipes = read_recipes(mapping)
    drawn = {
        name: draw_views([recipes["other"], recipes[name]], torch.arange(64), seed=5, epoch=1, source=(28, 28))[1]
        for name in ("shared", "weak", "strong")
    }
    mixed = drawn["shared"]
    assert isinstance(mixed, MixedParameters)
    assert torch.equal(mixed.box, torch.where(mixed.weak[:, None], drawn["weak"].box, drawn["strong"].box))


def test_coins_are_shared_or_own() -> None:
    batch = _batch(("weak", "shared", "other", "shared_other", "own", "own"), torch.arange(64))
    assert batch.weak[0] is None
    assert batch.weak[2] is None
    assert torch.equal(_coin(batch, 1), _coin(batch, 3))
    for one, other in ((1, 4), (1, 5), (4, 5)):
        assert 16 < (_coin(batch, one) == _coin(batch, other)).sum() < 48
    assert _coin(batch, 1).dtype == torch.bool


@pytest.mark.parametrize("change", [{"seed": 6}, {"epoch": 2}])
def test_coins_follow_seed_epoch_and_image(change: dict[str, int]) -> None:
    rows = torch.arange(64)
    batch, other = _batch(("shared", "own"), rows), _batch(("shared", "own"), rows, **change)
    for view in (0, 1):
        assert 16 < (_coin(batch, view) == _coin(other, view)).sum() < 48


def test_a_coin_is_independent_of_everything_else() -> None:
    drawn = draw_views(
        [RECIPES[name] for name in ("weak", "shared", "own")], torch.arange(20000), seed=0, epoch=0, source=(28, 28)
    )
    coins = [one.weak for one in drawn if isinstance(one, MixedParameters)]
    parts = [*coins, *(one.flip for one in drawn), *drawn[0].box.T]
    correlation = torch.corrcoef(torch.stack([part.double() for part in parts])).fill_diagonal_(0.0)
    assert correlation[:2].abs().max() < 0.035
    assert all(abs(float(coin.double().mean()) - 0.5) < 0.012 for coin in coins)


@pytest.mark.parametrize(("probability", "chosen"), [(0.0, 0), (1.0, 64)])
def test_a_coin_may_always_fall_on_one_side(probability: float, chosen: int) -> None:
    changed = {**MAPPING, "shared": {"mixed": {**MAPPING["shared"]["mixed"], "probability": probability}}}
    recipe = read_recipes(changed)["shared"]
    rows = torch.arange(64)
    batch = make_batch(_images(64), rows, rows + 100, [recipe], seed=5, epoch=1, mean=MEAN, std=STD)
    assert int(_coin(batch, 0).sum()) == chosen
    assert torch.equal(batch.views[0], _batch(("weak" if chosen else "strong",), rows).views[0])


def test_a_sample_is_made_alike_in_any_batch() -> None:
    whole = _batch(("shared", "own"), torch.arange(64))
    for rows in (torch.tensor([63, 0, 17, 5, 6]), torch.tensor([9]), torch.arange(40).flip(0)):
        part = _batch(("shared", "own"), rows)
        for view in (0, 1):
            assert torch.equal(part.views[view], whole.views[view][rows])
            assert torch.equal(_coin(part, view), _coin(whole, view)[rows])
            assert torch.equal(part.geometry[view].box, whole.geometry[view].box[rows])


def test_each_side_is_computed_for_its_own_images_only(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    apply = batch_module.apply
    monkeypatch.setattr(
        batch_module, "apply", lambda images, *rest: (made.append(len(images)), apply(images, *rest))[1]
    )
    batch = _batch(("shared",), torch.arange(64))
    weak = int(_coin(batch, 0).sum())
    assert made == [weak, 64 - weak]


def test_images_of_many_sizes_get_the_side_that_their_coin_chose() -> None:
    """Of views that were cut elsewhere, only what comes behind the cut is left to do, side by side."""
    indices, sizes = torch.arange(40), torch.tensor([[28, 28], [40, 33]]).repeat(20, 1)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes.tolist()]
    finished = {}
    for name in ("shared", "weak", "strong"):
        recipe = RECIPES[name]
        drawn = draw_views([recipe], indices, seed=0, epoch=0, source=sizes)
        boxes, flips = drawn[0].box.tolist(), drawn[0].flip.tolist()
        cuts = torch.stack([cut(*one, recipe.size) for one in zip(images, boxes, flips, strict=True)])
        finished[name] = finish_batch([cuts], drawn, indices, indices, [recipe], source=sizes, mean=MEAN, std=STD)
    coin = _coin(finished["shared"], 0)
    expected = torch.where(coin[:, None, None, None], finished["weak"].views[0], finished["strong"].views[0])
    assert torch.equal(finished["shared"].views[0], expected)
    assert finished["weak"].weak == [None]


def test_operations_of_both_sides_stand_in_one_draw() -> None:
    drawn = draw_views([RECIPES["shared"]], torch.arange(64), seed=5, epoch=1, source=(28, 28))[0]
    assert isinstance(drawn, MixedParameters)
    assert drawn.randaugment is not None
    operation = drawn.randaugment.operation
    assert operation.shape == (64, 2)
    assert (operation[drawn.weak] == -1).all()
    strong = drawn.sides[1].randaugment
    assert strong is not None
    assert torch.equal(operation[~drawn.weak], strong.operation)
    assert torch.equal(drawn.randaugment.magnitude[~drawn.weak], strong.magnitude)
    plain = draw_views(
        [read_recipes({**MAPPING, "strong": MAPPING["other"]})["shared"]],
        torch.arange(9),
        seed=0,
        epoch=0,
        source=(28, 28),
    )
    assert plain[0].randaugment is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weak": "weka"},
            "augmentation.shared.mixed.weak: no recipe named 'weka' that is not mixed itself; did you mean 'weak'",
        ),
        ({"strong": "own"}, "augmentation.shared.mixed.strong: no recipe named 'own' that is not mixed itself"),
        ({"strong": "strong_local"}, "augmentation.shared: 'weak' has size 24, 'strong_local' has 12; make them equal"),
        ({"probability": 1.5}, "key 'augmentation.shared.mixed.probability' must be at most 1, not 1.5"),
        ({"coin": "each"}, "mixed.coin' must be one of 'shared' or 'own', not 'each'"),
        ({"coins": "own"}, "unknown key 'augmentation.shared.mixed.coins'; did you mean 'coin'"),
    ],
)
def test_faults_are_named(change: dict[str, Any], message: str) -> None:
    faulty = {**MAPPING, "shared": {"mixed": {**MAPPING["shared"]["mixed"], **change}}}
    with pytest.raises(UserError) as caught:
        check_recipes("run", faulty)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sides_must_be_resized_alike_and_stand_alone() -> None:
    with pytest.raises(UserError, match="has interpolation bilinear, 'strong' has bicubic; make them equal"):
        check_recipes("run", {**MAPPING, "strong": {**MAPPING["strong"], "interpolation": "bicubic"}})
    with pytest.raises(UserError, match=r"unknown key 'augmentation.shared.flip'"):
        check_recipes("run", {**MAPPING, "shared": {**MAPPING["shared"], "flip": 0.5}})
    with pytest.raises(UserError, match=r"key 'augmentation.shared.mixed.coin' is missing"):
        check_recipes("run", {**MAPPING, "shared": {"mixed": {"weak": "weak", "strong": "strong", "probability": 0.5}}})
