"""Correspondences: golden values, fractions cell by cell, ties, strides, mirrors, painted images."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from polygrain.nn.correspond import Pairs, Rounding, Stride, correspond, repeats, stride
from polygrain.views.crop import crop_resize_flip

Box = Sequence[int]
EVERY = Stride(1, 1, 1)
RULES = {
    2: (EVERY, EVERY),
    4: (Stride(4, 1, 2), Stride(2, 1, 2)),
    7: (Stride(8, 2, 4), Stride(4, 1, 3)),
    8: (Stride(7, 1, 4), Stride(5, 1, 3)),
    14: (Stride(12, 2, 8), Stride(8, 2, 6)),
}


def found(
    boxes_1: Sequence[Box],
    boxes_2: Sequence[Box],
    flips: tuple[Sequence[bool], Sequence[bool]],
    cells: int,
    pairs: int,
    rules: tuple[Stride, Stride] = (EVERY, EVERY),
    rounding: Rounding = "exact",
    lottery: Tensor | None = None,
) -> Pairs:
    return correspond(
        (torch.tensor(boxes_1), torch.tensor(boxes_2)),
        (torch.tensor(flips[0]), torch.tensor(flips[1])),
        cells,
        pairs,
        row_stride=rules[0],
        column_stride=rules[1],
        rounding=rounding,
        lottery_BP=lottery,
    )


def one(
    box_1: Box, box_2: Box, cells: int, pairs: int, *, flip: tuple[bool, bool] = (False, False), **more: object
) -> Pairs:
    return found([box_1], [box_2], ([flip[0]], [flip[1]]), cells, pairs, **more)  # type: ignore[arg-type]


def triples(pairs: Pairs, image: int = 0) -> set[tuple[int, int, float]]:
    """Kept pairs as the specification lists them, weights to six places."""
    columns = (part[image].tolist() for part in pairs)
    return {(n, m, round(w, 6)) for n, m, w in zip(*columns, strict=True) if w > 0}


def lists(pairs: Pairs, image: int) -> list[tuple[int, int, float]]:
    return list(zip(*(part[image].tolist() for part in pairs), strict=True))


# --- the rewrite: cell by cell, in fractions of a source pixel


def shared(a: Fraction, b: Fraction, c: Fraction, d: Fraction) -> Fraction:
    """Length that [a, b] and [c, d] have in common."""
    return max(min(b, d) - max(a, c), Fraction(0))


def cell(box: Box, cells: int, i: int, j: int) -> tuple[Fraction, Fraction, Fraction, Fraction]:
    """Top, bottom, left and right of a cell in the source."""
    top, left, height, width = box
    h, w = Fraction(height, cells), Fraction(width, cells)
    return top + i * h, top + (i + 1) * h, left + j * w, left + (j + 1) * w


def rewritten_stride(box_1: Box, box_2: Box, rule: Stride) -> int:
    whole_1, whole_2 = cell(box_1, 1, 0, 0), cell(box_2, 1, 0, 0)
    common = shared(*whole_1[:2], *whole_2[:2]) * shared(*whole_1[2:], *whole_2[2:])
    union = box_1[2] * box_1[3] + box_2[2] * box_2[3] - common
    return min(max(int(common / union * rule.coefficient), rule.least), rule.most)


def rewritten(
    box_1: Box, box_2: Box, flip_1: bool, flip_2: bool, cells: int, pairs: int, rules: tuple[Stride, Stride]
) -> list[tuple[int, int, float]]:
    whole = cell(box_2, 1, 0, 0)
    size = Fraction(box_1[2] * box_1[3] + box_2[2] * box_2[3], cells**2)
    rows = [i for i in range(cells) if shared(*cell(box_1, cells, i, 0)[:2], *whole[:2])]
    columns = [j for j in range(cells) if shared(*cell(box_1, cells, 0, j)[2:], *whole[2:])]
    candidates = []
    for i in rows[:: rewritten_stride(box_1, box_2, rules[0])]:
        for j in columns[:: rewritten_stride(box_1, box_2, rules[1])]:
            mine = cell(box_1, cells, i, j)
            for s in range(cells):
                if not shared(*mine[:2], *cell(box_2, cells, s, 0)[:2]):
                    continue
                for t in range(cells):
                    other = cell(box_2, cells, s, t)
                    area = shared(*mine[:2], *other[:2]) * shared(*mine[2:], *other[2:])
                    if area:
                        candidates.append((-area / size, i, j, s, t))
    kept = []
    for w, i, j, s, t in sorted(candidates)[:pairs]:
        n = i * cells + (cells - 1 - j if flip_1 else j)
        m = s * cells + (cells - 1 - t if flip_2 else t)
        kept.append((n, m, float(-w)))
    return kept + [(0, 0, 0.0)] * (pairs - len(kept))


def crops(count: int, seed: int) -> tuple[list[Box], list[Box]]:
    """Pairs of boxes in sources of 28 to 640 px; among them identical, nested, aligned, touching and disjoint ones."""
    generator = np.random.default_rng(seed)

    def crop(height: int, width: int) -> list[int]:
        h, w = (int(generator.integers(max(side // 3, 1), side + 1)) for side in (height, width))
        return [int(generator.integers(0, height - h + 1)), int(generator.integers(0, width - w + 1)), h, w]

    first, second = [], []
    for number in range(count):
        height, width = (28, 28) if number % 2 else (int(x) for x in generator.integers(28, 641, 2))
        box = crop(height, width)
        top, left, h, w = box
        special = [
            box,
            [top, left + w, h, w],
            [top + h, left, h, w],
            [top, left, h, max(w // 2, 1)],
            [top + 14, left + 28, h, w],
            [top + 1000, left + 1000, h, w],
        ]
        first.append(box)
        second.append(special[number // 5 % len(special)] if number % 5 == 0 else crop(height, width))
    return first, second


@pytest.mark.parametrize(("cells", "count"), [(1, 200), (2, 400), (4, 300), (7, 200), (8, 200), (14, 100)])
@pytest.mark.parametrize("strided", [True, False])
def test_against_fractions_cell_by_cell(cells: int, count: int, strided: bool) -> None:
    rules = RULES[cells] if strided and cells in RULES else (EVERY, EVERY)
    if not strided:
        count //= 1 + cells // 4
    boxes_1, boxes_2 = crops(count, seed=cells)
    flips = [[bool(number >> place & 1) for number in range(count)] for place in (0, 1)]
    many, few = (found(boxes_1, boxes_2, (flips[0], flips[1]), cells, k, rules) for k in (400, 5))
    assert [part.dtype for part in many] == [torch.int64, torch.int64, torch.float64]
    assert [list(part.shape) for part in (*many, *few)] == [[count, 400]] * 3 + [[count, 5]] * 3
    for image in range(count):
        expected = rewritten(boxes_1[image], boxes_2[image], flips[0][image], flips[1][image], cells, 400, rules)
        assert [x[:2] for x in lists(many, image)] == [x[:2] for x in expected]
        np.testing.assert_allclose(many.weight[image], [x[2] for x in expected], rtol=1e-15, atol=0)
        assert lists(few, image) == lists(many, image)[:5]


# --- golden values of section 5; boxes are top, left, height, width here

BOX_1, BOX_2 = [0, 0, 20, 20], [4, 5, 20, 22]


def test_golden_four_cells() -> None:
    assert triples(one(BOX_1, BOX_2, 2, 9)) == {
        (1, 0, 0.171429),
        (3, 2, 0.171429),
        (0, 0, 0.142857),
        (2, 2, 0.142857),
        (1, 1, 0.114286),
        (3, 0, 0.114286),
        (3, 3, 0.114286),
        (2, 0, 0.095238),
        (3, 1, 0.076190),
    }
    assert triples(one(BOX_1, BOX_2, 2, 4, flip=(True, False))) == {
        (0, 0, 0.171429),
        (2, 2, 0.171429),
        (1, 0, 0.142857),
        (3, 2, 0.142857),
    }
    assert triples(one(BOX_1, BOX_2, 2, 2, flip=(False, True))) == {(1, 1, 0.171429), (3, 3, 0.171429)}


def test_golden_strides() -> None:
    """The strides are those that the official rules give at this IoU of 0.4."""
    boxes = torch.tensor([BOX_1]), torch.tensor([BOX_2])
    assert [stride(boxes, rule, "exact").item() for rule in (*RULES[7], *RULES[14])] == [3, 1, 4, 3]
    at_7 = one(BOX_1, BOX_2, 7, 10, rules=RULES[7])
    assert triples(at_7) == {
        *((n, m, 0.285714) for n, m in ((11, 2), (32, 23))),
        *((n, m, 0.271429) for n, m in ((10, 1), (31, 22), (12, 3), (33, 24))),
        *((n, m, 0.242857) for n, m in ((13, 4), (34, 25), (9, 0), (30, 21))),
    }
    at_14 = one(BOX_1, BOX_2, 14, 4, rules=RULES[14])
    assert triples(at_14) == {(149, 103, 0.380952), (93, 47, 0.380952), (146, 100, 0.304762), (90, 44, 0.304762)}


@pytest.mark.parametrize("cells", [2, 4, 7])
def test_identical_boxes_pair_every_cell_with_itself_or_its_mirror(cells: int) -> None:
    box, count = [3, 5, 17, 23], cells * cells
    plain = one(box, box, cells, count)
    assert triples(plain) == {(n, n, 0.5) for n in range(count)}
    expected = {(i * cells + j, i * cells + cells - 1 - j, 0.5) for i in range(cells) for j in range(cells)}
    assert triples(one(box, box, cells, count, flip=(True, False))) == expected
    assert triples(one(box, box, cells, count, flip=(False, True))) == expected
    assert triples(one(box, box, cells, count, flip=(True, True))) == {(n, n, 0.5) for n in range(count)}


def test_equal_weights_are_taken_in_reading_order() -> None:
    """Aligned boxes make all 16 cells tie: the first ones are kept, before mirroring."""
    box = [0, 0, 16, 16]
    assert lists(one(box, box, 4, 3), 0) == [(0, 0, 0.5), (1, 1, 0.5), (2, 2, 0.5)]
    assert lists(one(box, box, 4, 3, flip=(False, True)), 0) == [(0, 3, 0.5), (1, 2, 0.5), (2, 1, 0.5)]
    shifted = one([0, 0, 2, 2], [0, 1, 2, 2], 1, 1)
    assert lists(shifted, 0) == [(0, 0, 0.25)]


# --- strides


def test_released_rounding_loses_one_where_the_product_is_whole() -> None:
    """|O| = 440 and |union| = 880, times 12: the specification's example."""
    boxes = torch.tensor([[0, 0, 20, 44]]), torch.tensor([[0, 11, 20, 22]])
    assert stride(boxes, Stride(12, 2, 8), "exact").item() == 6
    assert stride(boxes, Stride(12, 2, 8), "float32").item() == 5
    exact, released = (
        one([0, 0, 20, 44], [0, 11, 20, 22], 14, 10, rules=RULES[14], rounding=rounding)
        for rounding in ("exact", "float32")
    )
    assert triples(exact) != triples(released)


def test_strides_of_many_crops_under_both_rules() -> None:
    boxes_1, boxes_2 = crops(3000, seed=1)
    boxes = torch.tensor(boxes_1), torch.tensor(boxes_2)
    differing = 0
    for rule in (Stride(12, 2, 8), Stride(8, 2, 4), Stride(60, 1, 60)):
        exact, released = (stride(boxes, rule, rounding).tolist() for rounding in ("exact", "float32"))
        for a, b, mine, theirs in zip(boxes_1, boxes_2, exact, released, strict=True):
            assert mine == rewritten_stride(a, b, rule)
            overlap = [max(min(a[k] + a[k + 2], b[k] + b[k + 2]) - max(a[k], b[k]), 0) for k in (0, 1)]
            common = overlap[0] * overlap[1]
            inverse = np.float32(1) / np.float32(a[2] * a[3] + b[2] * b[3] - common)
            product = np.float32(rule.coefficient) * (np.float32(common) * inverse)
            assert theirs == min(max(int(product), rule.least), rule.most)
            assert mine - theirs in (0, 1)
            differing += mine != theirs
    assert differing > 0


def test_visits_start_at_the_first_cell_that_meets_the_other_crop() -> None:
    """View 2 covers rows 1..3 of view 1's four, so a stride of 2 visits rows 1 and 3, every column."""
    pairs = one([0, 0, 16, 16], [5, 0, 11, 16], 4, 40, rules=(Stride(100, 2, 2), EVERY))
    assert {n // 4 for n, _, _ in triples(pairs)} == {1, 3}
    assert {n % 4 for n, _, _ in triples(pairs)} == {0, 1, 2, 3}
    pairs = one([0, 0, 16, 16], [0, 5, 16, 11], 4, 40, rules=(EVERY, Stride(100, 2, 2)), flip=(True, False))
    assert {3 - n % 4 for n, _, _ in triples(pairs)} == {1, 3}


# --- what is left over, lotteries, repeats


@pytest.mark.parametrize("flip", [(False, False), (True, True)])
def test_missing_pairs_are_padded(flip: tuple[bool, bool]) -> None:
    apart = one([0, 0, 10, 10], [0, 10, 10, 10], 4, 6, flip=flip)
    assert lists(apart, 0) == [(0, 0, 0.0)] * 6
    corner = one([0, 0, 8, 8], [7, 7, 8, 8], 4, 3, flip=flip)
    expected = (12, 3) if flip[0] else (15, 0)
    assert lists(corner, 0) == [(*expected, 1 / 8), (0, 0, 0.0), (0, 0, 0.0)]
    assert lists(one(BOX_1, BOX_2, 1, 3, flip=flip), 0)[1:] == [(0, 0, 0.0)] * 2


def test_a_lottery_keeps_any_of_the_overlapping_pairs() -> None:
    candidates = triples(one(BOX_1, BOX_2, 4, 60))
    draws, count = 2000, len(candidates)
    lottery = torch.randint(0, 2**31, (draws, 256), generator=torch.Generator().manual_seed(0))
    flips = [False] * draws, [False] * draws
    many = found([BOX_1] * draws, [BOX_2] * draws, flips, 4, 5, lottery=lottery)
    seen: dict[tuple[int, int, float], int] = dict.fromkeys(candidates, 0)
    for image in range(draws):
        chosen = triples(many, image)
        assert len(chosen) == 5
        for pair in chosen:
            seen[pair] += 1
    expected = draws * 5 / count
    assert all(abs(times - expected) < 5 * np.sqrt(expected) for times in seen.values())
    everything = found([BOX_1], [BOX_2], ([False], [False]), 4, 60, lottery=torch.zeros(1, 256, dtype=torch.int64))
    assert triples(everything) == candidates
    top = torch.zeros(1, 256, dtype=torch.int64)
    top[0, (1 * 4 + 3) * 16 + 2] = 2**31 - 1  # row 1, column 3 of view 1 with row 0, column 2 of view 2
    best = found([BOX_1], [BOX_2], ([False], [True]), 4, 1, lottery=top)
    assert (best.cell_1.item(), best.cell_2.item()) == (7, 1)


def test_repeats() -> None:
    boxes_1, boxes_2 = crops(60, seed=9)
    pairs = found(boxes_1, boxes_2, ([False] * 60, [True] * 60), 4, 12, RULES[4])
    marked = repeats(pairs)
    for image in range(60):
        seen: set[int] = set()
        for slot, (n, _, w) in enumerate(lists(pairs, image)):
            assert marked[image, slot].item() == (w > 0 and n in seen)
            if w > 0:
                seen.add(n)
    assert 0 < int(marked.sum()) < marked.numel()


def test_images_do_not_touch_each_other() -> None:
    boxes_1, boxes_2 = crops(40, seed=4)
    flips = [bool(n % 2) for n in range(40)], [bool(n % 3) for n in range(40)]
    together = found(boxes_1, boxes_2, flips, 7, 10, RULES[7])
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = found(
        [boxes_1[n] for n in order],
        [boxes_2[n] for n in order],
        ([flips[0][n] for n in order], [flips[1][n] for n in order]),
        7,
        10,
        RULES[7],
    )
    for whole, part in zip(together, shuffled, strict=True):
        assert torch.equal(whole[order], part)


def test_views_change_places_where_every_cell_is_visited() -> None:
    boxes_1, boxes_2 = crops(50, seed=5)
    flips = [bool(n % 2) for n in range(50)], [bool(n % 3) for n in range(50)]
    there, back = (
        found(boxes_1, boxes_2, flips, 4, 256),
        found(boxes_2, boxes_1, (flips[1], flips[0]), 4, 256),
    )
    for image in range(50):
        assert triples(there, image) == {(m, n, w) for n, m, w in triples(back, image)}


def test_painted_coordinates_agree() -> None:
    """Views of an image that shows its own coordinates: the centres of paired cells are less than a cell side apart."""
    height, width, cells, count = 40, 52, 4, 64
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    image = torch.stack((rows, columns)).expand(count, -1, -1, -1).float()
    generator = np.random.default_rng(0)
    boxes, flips = [], []
    for _ in range(2):
        size = generator.integers(20, 41, (count, 2))
        start = [
            [int(generator.integers(0, side - s + 1)) for side, s in zip((40, 52), pair, strict=True)] for pair in size
        ]
        boxes.append(torch.tensor(np.concatenate([start, size], axis=1)))
        flips.append(torch.tensor(generator.integers(0, 2, count) == 1))
    centres = [
        avg_pool2d(crop_resize_flip(image, box, flip, 32), 8).flatten(2) for box, flip in zip(boxes, flips, strict=True)
    ]
    pairs = correspond(
        (boxes[0], boxes[1]), (flips[0], flips[1]), cells, 10, row_stride=EVERY, column_stride=EVERY, rounding="exact"
    )
    checked = 0
    for image_number in range(count):
        for n, m, w in lists(pairs, image_number):
            if w > 0:
                apart = (centres[0][image_number, :, n] - centres[1][image_number, :, m]).abs()
                reach = (boxes[0][image_number, 2:] + boxes[1][image_number, 2:]) / (2 * cells)
                assert bool((apart < reach + 0.3).all())
                checked += 1
    assert checked > 500
