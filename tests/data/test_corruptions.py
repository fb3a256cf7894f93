"""Corruptions are what their formulas say, by seeds of their own."""

from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from clipfuse.data.corruptions import CORRUPTIONS, corrupt, distance, find_corruption, outlines, relief, smoothed
from clipfuse.errors import TaskError

SEVERITIES = range(1, 6)
RANDOM = ["gaussian_noise", "impulse_noise", "motion_blur", "spatter"]


def natural(height: int = 224, width: int = 224) -> np.ndarray:
    """Noise whose amplitude falls as 1 / frequency, as in photographs; the three channels mostly go together."""
    random = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    noise = np.fft.fft2(random.normal(size=(3, height, width))) / np.maximum(frequency, 1 / max(height, width))
    planes = np.moveaxis(np.fft.ifft2(noise).real, 0, 2) @ [[0.8, 0.6, 0.6], [0.1, 0.4, 0.0], [0.1, 0.0, 0.4]]
    return np.clip((planes - planes.mean()) / planes.std() * 50 + 120, 0, 255).astype(np.uint8)


def change(image: np.ndarray, name: str, severity: int, seed: int = 0) -> float:
    """Mean absolute change, in grey levels."""
    return float(np.abs(corrupt(image, name, severity, seed).astype(int) - image).mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_same_seed_same_bits_and_the_image_stays(name: str):
    image = natural(60, 47)
    before = image.copy()
    np.random.seed(1)  # the global generator is neither looked at nor moved
    first = corrupt(image, name, 3, (7, 2, 3, 2**64 - 1))
    assert (corrupt(image, name, 3, [7, 2, 3, 2**64 - 1]) == first).all()
    drawn = np.random.random()
    np.random.seed(1)
    assert drawn == np.random.random()
    assert (corrupt(image, name, 3, (8, 2, 3, 2**64 - 1)) == first).all() == (name not in RANDOM)
    assert (image == before).all()
    assert not np.shares_memory(first, image)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_severity_changes_more(name: str):
    image = natural()
    changes = [np.mean([change(image, name, severity, seed) for seed in (0, 1)]) for severity in SEVERITIES]
    assert all(less < more for less, more in pairwise([0.1, *changes, 80])), changes


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(8, 8), (8, 31), (33, 9), (70, 64)], ids=str)
def test_any_shape_from_8_pixels_on(name: str, shape: tuple[int, int]):
    for severity in SEVERITIES:
        found = corrupt(natural(*shape), name, severity, 0)
        assert found.shape == (*shape, 3)
        assert found.dtype == np.uint8
        assert found.flags.writeable


@pytest.mark.parametrize("name", ["contrast", "motion_blur", "pixelate"])
def test_what_has_no_contrast_keeps_its_value(name: str):
    image = np.full((40, 40, 3), (200, 200, 200), np.uint8)
    for severity in SEVERITIES:
        assert (corrupt(image, name, severity, 5) == image).all()


def test_contrast_is_about_the_mean_of_each_channel():
    image = natural(50, 40)
    for severity, c in zip(SEVERITIES, (0.4, 0.3, 0.2, 0.1, 0.05), strict=True):
        for channel in range(3):
            values = image[..., channel] / 255.0
            wanted = 255 * ((values - values.mean()) * c + values.mean())
            found = corrupt(image, "contrast", severity, 0)[..., channel]
            np.testing.assert_allclose(found + 0.5, wanted, rtol=0, atol=0.5 + 1e-9)  # cut downwards


def test_gaussian_noise_has_its_deviation_in_every_channel():
    image = np.full((224, 224, 3), 128, np.uint8)
    for severity, c in zip(SEVERITIES[:3], (0.08, 0.12, 0.18), strict=True):  # the stronger ones are cut too often
        noise = corrupt(image, "gaussian_noise", severity, 3) + 0.5 - 128
        assert np.abs(noise.mean((0, 1))).max() < 5 * 255 * c / 224
        np.testing.assert_allclose(noise.std((0, 1)), 255 * c, rtol=0.02)
        assert np.abs(np.corrcoef(noise.reshape(-1, 3).T) - np.eye(3)).max() < 0.03
    for severity, c in ((4, 0.26), (5, 0.38)):
        black = (corrupt(image, "gaussian_noise", severity, 3) == 0).mean()
        share = {4: 0.02743, 5: 0.09427}[severity]  # of a normal distribution below (1 − 128) / (255 c)
        assert c == {4: 0.26, 5: 0.38}[severity]
        assert abs(black - share) < 0.004


def test_impulse_noise_takes_its_share_of_values_half_to_each_end():
    image = np.full((224, 224, 3), 100, np.uint8)
    for severity, c in zip(SEVERITIES, (0.03, 0.06, 0.09, 0.17, 0.27), strict=True):
        found = corrupt(image, "impulse_noise", severity, 0)
        assert set(np.unique(found)) == {0, 100, 255}
        bound = 5 * np.sqrt(c / found[..., 0].size)
        for channel in range(3):
            for end in (0, 255):
                assert abs((found[..., channel] == end).mean() - c / 2) < bound
        assert (found != 100).all(2).mean() < 2 * c**3 + 1e-3  # channels are hit independently


def test_pixelate_is_a_box_resize_there_and_back():
    image = natural(90, 64)
    for severity, c in zip(SEVERITIES, (0.6, 0.5, 0.4, 0.3, 0.25), strict=True):
        small = Image.fromarray(image).resize((int(64 * c), int(90 * c)), Image.Resampling.BOX)
        wanted = np.asarray(small.resize((64, 90), Image.Resampling.BOX))
        assert (corrupt(image, "pixelate", severity, 0) == wanted).all()
    halves = image[:64].reshape(32, 2, 32, 2, 3).mean((1, 3))
    found = corrupt(image[:64], "pixelate", 2, 0)[::2, 1::2]
    assert np.abs(found - halves).max() <= 1


def test_jpeg_is_the_encoder_of_pillow():
    image = natural(50, 70)
    for severity, quality in zip(SEVERITIES, (25, 18, 15, 10, 7), strict=True):
        file = BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        assert (corrupt(image, "jpeg_compression", severity, 0) == np.asarray(Image.open(file))).all()


def test_motion_blur_draws_a_half_bell_along_a_line_from_each_point():
    image = np.zeros((120, 120, 3), np.uint8)
    image[60, 60] = 255
    for severity, (radius, sigma) in zip(SEVERITIES, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), strict=True):
        angles = set()
        for seed in range(4):
            found = corrupt(image, "motion_blur", severity, seed)[..., 0]
            rows, columns = np.nonzero(found)
            # what is blurred to the right of a pixel shows to the left of the point
            assert columns.max() == 60
            weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
            assert abs(int(found.sum()) - 255) <= 0.5 * (2 * radius + 1)
            assert abs(int(found[60, 60]) - 255 / weights.sum()) <= 0.5 + 1e-3
            far = np.hypot(rows - 60, columns - 60).max()
            assert far <= 2 * radius + 1
            slope = np.arctan2(60 - rows[columns == columns.min()].mean(), 60 - columns.min())
            assert abs(slope) < np.deg2rad(50)
            angles.add(round(float(np.rad2deg(slope))))
        assert len(angles) > 1


def test_motion_blur_equals_a_loop_over_pixels():
    image = natural(20, 23)
    angle = np.deg2rad(np.random.Generator(np.random.PCG64(np.random.SeedSequence(9))).uniform(-45, 45))
    weights = np.exp(-(np.arange(21) ** 2) / 18)
    wanted = np.zeros(image.shape)
    for row, column in np.ndindex(20, 23):
        for i, weight in enumerate(weights / weights.sum()):
            down, right = (int(np.ceil(i * side - 0.5)) for side in (np.sin(angle), np.cos(angle)))
            wanted[row, column] += weight * image[np.clip(row + down, 0, 19), np.clip(column + right, 0, 22)]
    assert np.abs(corrupt(image, "motion_blur", 1, 9) - wanted).max() <= 0.5 + 1e-3


def test_spatter_is_drops_of_water_then_of_mud():
    black, white = (np.full((224, 224, 3), value, np.uint8) for value in (0, 255))
    for severity, strength in ((1, 0.6), (2, 0.6), (3, 0.5)):
        water = corrupt(black, "spatter", severity, 4).astype(float)
        assert water.max() == int(238 * strength + 1e-9)
        np.testing.assert_allclose(water[..., 0], water[..., 1] * 175 / 238, rtol=0, atol=1)
        assert (water[..., 1] == water[..., 2]).all()
        assert (corrupt(white, "spatter", severity, 4) == 255).all()  # light is added, never taken
    for severity, least in ((4, 0.02), (5, 0.08)):
        mud = corrupt(white, "spatter", severity, 4)
        covered = (mud != 255).any(2)
        assert least < covered.mean() < 0.35
        mask = (255 - mud[covered].astype(float)) / (255 - np.array([63, 42, 20]))
        assert mask.min() >= 0.8
        assert mask.max() <= 1.01


def test_spatter_equals_opencv_on_the_same_draws():
    # mean and deviation of what imagecorruptions-imaug 1.1.5 makes with OpenCV 5.0 of the normal draws of this seed
    known = {1: (2.2730, 12.1133), 2: (6.7217, 21.0440), 3: (9.3290, 21.5325), 4: (229.2984, 65.0812), 5: (215.3835, 77.6448)}  # fmt: skip
    for severity, (mean, deviation) in known.items():
        found = corrupt(np.full((96, 128, 3), 255 * (severity > 3), np.uint8), "spatter", severity, 11)
        assert found.mean() == pytest.approx(mean, abs=2e-3)
        assert found.std() == pytest.approx(deviation, abs=2e-3)


def test_smoothing_keeps_the_mean_and_has_its_width():
    point = np.zeros((41, 61))
    point[20, 30] = 1
    found = smoothed(point, 3.0)
    y, x = np.mgrid[-20:21, -30:31]
    assert found.sum() == pytest.approx(1)
    assert (found * y * y).sum() == pytest.approx(9, rel=0.01)
    assert (found * x * x).sum() == pytest.approx(9, rel=0.01)
    assert (found > 0).sum() == 25**2
    np.testing.assert_allclose(smoothed(np.full((9, 8), 0.3), 4.0), 0.3, rtol=1e-12)


def test_outlines_of_a_box_are_its_sides_and_weak_ones_need_strong_ones():
    box = np.zeros((30, 30), np.uint8)
    box[8:20, 10:22] = 200
    found = outlines(box)
    rows, columns = np.nonzero(found)
    assert 40 <= found.sum() <= 48
    assert {rows.min(), columns.min()} <= {7, 8, 9, 10}
    assert not found[10:18, 12:20].any()
    weak = np.zeros((30, 30), np.uint8)
    weak[:, 15:] = 30  # |dx| = 120: between the thresholds
    assert not outlines(weak).any()
    weak[:3, 15:] = 60
    assert outlines(weak)[:, 14:16].any(1).all()


def test_distance_is_near_the_euclidean_one_up_to_20():
    edges = np.zeros((50, 70), bool)
    random = np.random.default_rng(0)
    edges[random.integers(0, 50, 9), random.integers(0, 70, 9)] = True
    y, x = np.mgrid[:50, :70]
    exact = np.min([np.hypot(y - row, x - column) for row, column in np.argwhere(edges)], axis=0)
    found = distance(edges)
    assert exact.max() > 20
    np.testing.assert_allclose(found, np.minimum(exact, 20), rtol=0.025)
    one = np.zeros((9, 9), bool)
    one[4, 4] = True
    assert distance(one)[4, 7] == distance(one)[1, 4] == 3
    assert distance(one)[2, 2] == pytest.approx(2.8)
    assert distance(one)[3, 6] == pytest.approx(2.1969)
    assert (distance(np.zeros((9, 9), bool)) == 20).all()


def test_relief_is_bright_where_depth_grows_towards_the_light():
    rising = np.add.outer(np.arange(30.0), np.arange(30.0)) / 3
    assert relief(rising)[2:-2, 2:-2].mean() > relief(rising[::-1, ::-1])[2:-2, 2:-2].mean() + 20
    flat = relief(np.full((10, 10), 7.0))
    assert (flat == 7).all()  # the lamp's weights add up to one


@pytest.mark.parametrize("name", ["jpeg", "JPEG", "Jpeg-Compression", " jpeg compression"])
def test_other_spellings_are_found(name: str):
    assert find_corruption(name) == "jpeg_compression"
    assert (corrupt(natural(9, 9), name, 5, 0) == corrupt(natural(9, 9), "jpeg_compression", 5, 1)).all()


def test_what_is_wrong_is_named():
    with pytest.raises(
        TaskError, match="unknown corruption 'gausian_noise'; did you mean 'gaussian_noise'. Known: con"
    ):
        find_corruption("gausian_noise")
    for severity in (0, 6, -1):
        with pytest.raises(TaskError, match=f"severity {severity} of contrast: takes a whole number from 1 to 5$"):
            corrupt(natural(8, 8), "contrast", severity, 0)
    with pytest.raises(TaskError, match="pixelate of an image of 7 × 9: takes at least 8 × 8 pixels"):
        corrupt(natural(7, 9), "pixelate", 1, 0)
