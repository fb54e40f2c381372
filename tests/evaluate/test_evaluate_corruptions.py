"""Corruptions and their parts, against scipy, Pillow, colorsys and cases by hand."""

import colorsys

import numpy as np
import pytest
from scipy import ndimage, stats

from polygrain.evaluate import pixels
from polygrain.evaluate.corruptions import CORRUPTIONS, SHIFTS, corrupt
from polygrain.evaluate.pixels import Draws

KINDS = [*CORRUPTIONS, *SHIFTS]
MOVING = [
    "defocus-blur", "glass-blur", "motion-blur", "zoom-blur", "contrast", "elastic", "pixelate",
    "position", "size", "rotation",
]  # fmt: skip
POSITIONS = np.arange(100, 106)


def _images(channels: int = 1, side: int = 28) -> np.ndarray:
    """Smooth shapes with edges, of 6 images."""
    noise = np.random.default_rng(0).random((6, channels, side, side))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 2, 2))
    return np.where(smooth > 0.5, 200, 40).astype(np.uint8) + (noise * 30).astype(np.uint8)


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).random(shape)


def test_there_are_fifteen_kinds_and_three_shifts() -> None:
    assert len(CORRUPTIONS) == 15
    assert list(SHIFTS) == ["position", "size", "rotation"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_more_with_severity_and_each_image_alone(kind: str) -> None:
    images = _images()
    changed = [corrupt(images, kind, severity, 0, POSITIONS) for severity in range(1, 6)]
    assert all(one.dtype == np.uint8 and one.shape == images.shape for one in changed)
    away = [np.abs(one.astype(float) - images).mean() for one in changed]
    assert min(away) > 0
    # the release's first severity of elastic has the widest affine map, its last the widest field
    assert away[0] < away[-1] or kind == "elastic"
    few = corrupt(images[2:4], kind, 4, 0, POSITIONS[2:4])
    np.testing.assert_array_equal(few, changed[3][2:4])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 64)])
def test_every_kind_takes_colour_and_other_sides(kind: str, channels: int, side: int) -> None:
    images = _images(channels, side)[:2]
    assert corrupt(images, kind, 3, 0, POSITIONS[:2]).shape == images.shape


@pytest.mark.parametrize("kind", MOVING)
def test_what_moves_or_averages_pixels_leaves_an_even_image_alone(kind: str) -> None:
    even = np.full((2, 1, 28, 28), 90, np.uint8)
    for severity in (1, 5):
        np.testing.assert_array_equal(corrupt(even, kind, severity, 0, POSITIONS[:2]), even)


def test_other_seeds_and_kinds_draw_otherwise() -> None:
    images = _images()
    drawn = [corrupt(images, "gaussian-noise", 3, seed, POSITIONS) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).mean() > 0.8


def test_blurs_are_those_of_scipy() -> None:
    x = _noise(2, 3, 20, 20)
    for sigma in (0.2, 0.7, 1.5):
        expected = ndimage.gaussian_filter(x, (0, 0, sigma, sigma), mode="nearest", truncate=4)
        np.testing.assert_allclose(pixels.gaussian_blur(x, sigma), expected, atol=1e-12)
    kernel = _noise(3, 5)
    expected = ndimage.correlate(x, kernel[None, None], mode="mirror")
    np.testing.assert_allclose(pixels.correlate(x, kernel, "reflect"), expected, atol=1e-12)


def test_a_disk_by_hand() -> None:
    """Radius 1: five pixels of 1 / 5, hardly softened; radius 0.3: the pixel itself, softened."""
    five = pixels.disk(1.0, 0.1)
    np.testing.assert_allclose(five[1:-1, 1:-1], np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]) / 5, atol=1e-9)
    one, tap = pixels.disk(0.3, 0.4), np.exp(-0.5 / 0.16)
    assert one[2, 2] == pytest.approx(1 / (1 + 2 * tap) ** 2)
    assert one[1, 2] == pytest.approx(tap / (1 + 2 * tap) ** 2)
    assert one.sum() == pytest.approx(1)


def test_a_point_is_smeared_in_its_direction() -> None:
    x = np.zeros((2, 1, 15, 15))
    x[:, :, 7, 7] = 1
    found = pixels.motion_blur(x, 2, 1.0, np.array([0.0, 90.0]))
    taps = np.exp(-0.5 * np.arange(5) ** 2)
    np.testing.assert_allclose(found[0, 0, 7, 7:2:-1], taps / taps.sum())
    np.testing.assert_allclose(found[1, 0, 7:2:-1, 7], taps / taps.sum())
    np.testing.assert_allclose(found.sum(axis=(1, 2, 3)), 1)


@pytest.mark.parametrize(("border", "mode"), [("edge", "nearest"), ("reflect", "mirror")])
def test_samples_between_pixels_are_those_of_scipy(border: str, mode: str) -> None:
    x, place = _noise(2, 1, 12, 12), _noise(2, 2, 12, 12) * 30 - 9
    found = pixels.sampled(x, place[0], place[1], border)
    for image in range(2):
        expected = ndimage.map_coordinates(x[image, 0], place[:, image], order=1, mode=mode)
        np.testing.assert_allclose(found[image, 0], expected, atol=1e-12)


def test_moves_by_hand() -> None:
    x = _noise(1, 1, 9, 9)
    turn = np.array([[[0.0, -1.0], [1.0, 0.0]]])
    still, none = np.eye(2)[None], np.zeros((1, 2))
    np.testing.assert_allclose(pixels.moved(x, still, none, "edge"), x)
    np.testing.assert_allclose(pixels.moved(x, turn, none, "edge")[0, 0], np.rot90(x[0, 0], -1), atol=1e-12)
    shifted = pixels.moved(x, still, np.array([[1.0, 2.0]]), "edge")
    np.testing.assert_allclose(shifted[0, 0, :-1, :-2], x[0, 0, 1:, 2:])
    assert (shifted[0, 0, -1, :-2] == x[0, 0, -1, 2:]).all()


def test_zoom_is_a_sample_about_the_centre() -> None:
    x = _noise(1, 2, 11, 11)
    np.testing.assert_allclose(pixels.zoomed(x, 1.0), x, atol=1e-12)
    expected = pixels.moved(x, np.eye(2)[None] / 1.3, np.zeros((1, 2)), "edge")
    np.testing.assert_allclose(pixels.zoomed(x, 1.3), expected, atol=1e-12)


def test_textures_fill_the_range_and_are_smoother_for_a_larger_decay() -> None:
    rough, smooth = (pixels.plasma(28, decay, Draws(0, "test", np.arange(40))) for decay in (1.2, 3.0))
    assert rough.shape == (40, 28, 28)
    assert rough.min() == 0
    assert 0.9 < rough.max() <= 1

    def steps(heights: np.ndarray) -> float:
        return float(np.abs(np.diff(heights, axis=2)).mean())

    assert steps(smooth) < steps(rough) / 2
    np.testing.assert_array_equal(pixels.plasma(28, 1.2, Draws(0, "test", np.arange(5, 9))), rough[5:9])


def test_noises_have_their_laws() -> None:
    grey = np.full((40, 1, 28, 28), 128, np.uint8)
    positions = np.arange(40)
    away = corrupt(grey, "gaussian-noise", 5, 0, positions) / 255 - 128 / 255
    assert away.mean() == pytest.approx(0, abs=0.003)
    assert away.std() == pytest.approx(0.1, abs=0.003)
    hit = corrupt(grey, "impulse-noise", 5, 0, positions)
    assert (hit == 0).mean() == pytest.approx(0.035, abs=0.003)
    assert (hit == 255).mean() == pytest.approx(0.035, abs=0.003)
    assert (hit == 128).mean() == pytest.approx(0.93, abs=0.006)


def test_shot_noise_is_the_inverse_of_the_poisson_distribution() -> None:
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (len(levels), 1, 12, 12))
    positions = np.arange(len(levels))
    drawn = Draws(3, "corruption shot-noise", positions).uniform("count", 1, 12, 12)
    for severity, c in ((1, 500), (5, 50)):
        counts = stats.poisson.ppf(drawn, images / 255 * c).clip(0)
        expected = np.rint((counts / c).clip(0, 1) * 255)
        np.testing.assert_array_equal(corrupt(images, "shot-noise", severity, 3, positions), expected)


def test_glass_shows_neighbours_above_and_to_the_left() -> None:
    """At the first severity its blur has no reach: each inner pixel is one of four, each as often as the others."""
    images = np.random.default_rng(3).permutation(np.tile(np.arange(196), 4)).reshape(1, 1, 28, 28).astype(np.uint8)
    found = corrupt(images, "glass-blur", 1, 0, POSITIONS[:1])[0, 0]
    image, inner = images[0, 0], (slice(2, None), slice(2, None))
    from_here = [found[inner] == np.roll(image, (down, right), (0, 1))[inner] for down in (0, 1) for right in (0, 1)]
    assert np.any(from_here, axis=0).all()
    assert [share.mean() for share in from_here] == pytest.approx([0.25] * 4, abs=0.06)
    assert (found[:2] == image[:2]).all()
    assert (found[:, :2] == image[:, :2]).all()


def test_brightness_is_the_value_of_hsv_and_contrast_by_hand() -> None:
    image = np.random.default_rng(2).integers(0, 256, (1, 3, 6, 6)).astype(np.uint8)
    image[0, :, 0, 0] = 0
    found = corrupt(image, "brightness", 3, 0, POSITIONS[:1])
    for row in range(6):
        for column in range(6):
            hue, saturation, value = colorsys.rgb_to_hsv(*(image[0, :, row, column] / 255))
            expected = colorsys.hsv_to_rgb(hue, saturation, min(1.0, value + 0.15))
            np.testing.assert_allclose(found[0, :, row, column], np.array(expected) * 255, atol=0.501)
    low = np.array([[0, 100], [100, 200]], np.uint8)[None, None]
    assert corrupt(low, "contrast", 2, 0, POSITIONS[:1]).ravel().tolist() == [50, 100, 100, 150]
