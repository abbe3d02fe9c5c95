"""What a command runs, and the frozen modules that are kept for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT, save_published_layout, seed_model

import swsl
from swsl.cli.engines import cached_export
from swsl.deploy import export


def test_a_variant_is_frozen_once_for_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "export_model", lambda model, path, **_: Path(path).write_text("frozen"))
    name = "swsl_resnext50_32x4d"
    paths = []
    for seed in (0, 1):
        model = seed_model(swsl.create_model(name, pretrained=False), seed)
        save_published_layout(model, tmp_path / "w.pth")
        paths.append(cached_export(name, tmp_path / "w.pth"))
    assert paths[0] != paths[1]
    paths[0].write_text("reused")
    monkeypatch.setattr(export, "export_model", None)
    assert cached_export(name, tmp_path / "w.pth") == paths[1]
    assert ROOT not in paths[0].parents
