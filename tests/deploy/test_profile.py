"""Where the time of a forward pass goes: `swsl profile`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

import swsl
from swsl.cli.main import main
from swsl.deploy.runner import Runner, build_info

if not build_info()["compiled"]:
    if os.environ.get("SWSL_REQUIRE_RUNNER") == "1":
        raise ImportError(build_info()["reason"])
    pytest.skip(build_info()["reason"], allow_module_level=True)


def test_the_command(frozen50: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["profile", str(frozen50), "-o", str(tmp_path / "roofline.png")]
    if Runner(frozen50).info.name != "planned":  # a processor without AVX2
        assert main(arguments) == 1
        assert "cannot be profiled: the planned engine needs" in capsys.readouterr().err
        return
    assert main(arguments) == 0
    *_, total = capsys.readouterr().out.splitlines()
    assert total.startswith("together")
    with Image.open(tmp_path / "roofline.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 300


def test_every_multiplication_is_in_some_layer(frozen50: Path) -> None:
    from swsl.deploy.profile import profile

    if Runner(frozen50).info.name != "planned":
        pytest.skip("a processor without AVX2 has no planned engine to profile; the command says so above")
    layers, peak, _ = profile(frozen50, batch=2, rounds=2)
    macs = swsl.VARIANTS["swsl_resnext50_32x4d"].macs
    assert sum(layer.multiply_adds for layer in layers) == 2 * macs
    assert all(layer.seconds > 0 for layer in layers)
    assert peak > 0
