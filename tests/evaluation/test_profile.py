"""Where the time of a forward pass goes: `swsl profile`."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import swsl
from swsl.cli.main import main
from swsl.deploy.runner import LayerTime, build_info
from swsl.evaluation.profile import TOO_BUSY, Profile, profile, table
from swsl.evaluation.roofline import _CHART, _ONE_BY_ONE, _OTHERS, dots, draw_roofline, place_labels

if not build_info()["compiled"]:
    if os.environ.get("SWSL_REQUIRE_RUNNER") == "1":
        raise ImportError(build_info()["reason"])
    pytest.skip(build_info()["reason"], allow_module_level=True)

PEAK = 1e11


def made(change: Callable[[Profile], Profile] = lambda found: found) -> Profile:
    """Two images' passes on a machine that does nothing else: at half the peak, where there is work."""
    layers = [
        LayerTime("interleave", "3×8×8", 0, 1e-5),
        LayerTime("3×3 tiles", "3×8×8 → 64×8×8", 2 * 64 * 64 * 27, 0),
        *[LayerTime("1×1 tiles", "64×8×8 → 128×4×4", 2 * 16 * 128 * 64, 0)] * 3,
    ]
    generator = random.Random(0)
    passes = [
        [
            each._replace(
                seconds=each.seconds or 4 * each.multiply_adds / PEAK * generator.uniform(0.98, 1.02)
            )
            for each in layers
        ]
        for _ in range(20)
    ]
    return change(Profile(passes, [PEAK] * 20, [1e10] * 20, [1.0] * 20, 2, 4, "float32, batch 2"))


def scattered(found: Profile) -> Profile:
    """One layer's clock is read late in every other pass."""
    for layers in found.passes[::2]:
        layers[1] = layers[1]._replace(seconds=layers[1].seconds / 1900)
    return found


def test_the_command(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["profile", tiny[1], "-o", str(tmp_path / "roofline.png")]
    assert main(arguments) == 0
    assert "\ntogether" in capsys.readouterr().out
    with Image.open(tmp_path / "roofline.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 300


def test_every_multiplication_is_in_some_layer(frozen50: Path) -> None:
    found = profile(frozen50, batch=2, rounds=2)
    macs = swsl.VARIANTS["swsl_resnext50_32x4d"].macs
    assert sum(layer.multiply_adds for layer in found.layers) == 2 * macs
    assert sum(dot.layers for dot in dots(found)) == 54
    assert all(layer.seconds > 0 for layer in found.layers)
    for measured in (found.peaks, found.bandwidths, found.running):
        assert len(measured) == len(found.passes) == 2
        assert min(measured) > 0


def test_a_quiet_machine_is_told_its_shares() -> None:
    _, interleave, *lines = table(made()).splitlines()
    assert "%" not in interleave
    shares = [float(line.split()[-1].rstrip("%")) for line in lines]
    assert shares[:-1] == pytest.approx([50] * 4, rel=0.02)
    assert 35 < shares[-1] < 45  # for what is no work takes time too


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (scattered, [2, 3, 4]),
        (lambda found: found._replace(running=[0.4] * 20), []),
        (lambda found: found._replace(peaks=[PEAK / 3] * 20), []),
        (lambda found: found._replace(peaks=[PEAK, PEAK / 2 * 1.1] * 10), []),
    ],
)
def test_a_busy_machine_is_told_that_it_is(change: Callable[[Profile], Profile], told: list[int]) -> None:
    found = made(change)
    assert [index for index in range(1, 5) if found.share([index]) is not None] == told
    lines = table(found).splitlines()
    assert lines[-1].startswith(f"?: {TOO_BUSY}")
    unknown = [line.split()[-2:] == ["?", "?"] for line in lines[2:6]]
    assert unknown == [index not in told for index in range(1, 5)]


def test_intensity_is_operations_for_each_byte() -> None:
    first, second = sorted(dots(made()), key=lambda dot: dot.layers)
    assert first.intensity == 2 * 64 * 64 * 27 * 2 / (4 * (2 * (3 * 64 + 64 * 64) + 64 * 27))
    assert second.layers == 3
    assert second.intensity == 2 * 2 * 16 * 128 * 64 / (4 * (2 * (64 * 64 + 128 * 16) + 128 * 64))
    assert second.rate == pytest.approx(PEAK / 2, rel=0.02)


@pytest.mark.parametrize("change", [lambda found: found, scattered])
def test_nothing_is_drawn_outside_the_chart(change: Callable[[Profile], Profile]) -> None:
    """Not even what a busy machine puts far above the roof."""
    picture = draw_roofline(made(change))
    left, top, right, bottom = _CHART
    colours = {tuple(bytes.fromhex(colour[1:])) for colour in (_ONE_BY_ONE, _OTHERS)}

    def drawn(*box: int) -> set[tuple[int, ...]]:
        return colours & {colour for _, colour in picture.crop(box).getcolors(1 << 20)}

    assert drawn(left, top, right, bottom) == colours
    for box in (
        (0, 0, left, picture.height),
        (0, 0, right, top),
        (0, bottom + 1, right, picture.height),
        (right + 1, 0, right + 20, picture.height),
    ):
        assert not drawn(*box)


def test_labels_do_not_overlap() -> None:
    generator = random.Random(1)
    heap = [(700 + generator.gauss(0, 30), 100 + generator.gauss(0, 10), 6.0) for _ in range(60)]
    line = (500.0, 100.0, 760.0, 102.0)
    labels = place_labels(heap, _CHART, [line])
    assert len(labels) == 40
    boxes = [*labels, line, *((x - r, y - r, x + r, y + r) for x, y, r in heap)]
    for number, a in enumerate(labels):
        assert _CHART[0] <= a[0] < a[2] <= _CHART[2]
        assert _CHART[1] <= a[1] < a[3] <= _CHART[3]
        for b in boxes[number + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
