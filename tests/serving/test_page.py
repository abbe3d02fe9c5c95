"""The server's page in a browser: what it shows, what it asks for, what it says of what goes wrong."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, chromium
from conftest import seed_model, subprocess_environment, swsl_command
from PIL import Image

import swsl

pytestmark = pytest.mark.slow

LABELS = ["cat", "dög", "<b>bold</b> & \"quoted\"", *(f"a label of many words, number {i}" for i in range(4))]  # fmt: skip
SPEC = swsl.PreprocessSpec((64, 48))


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "model.pt"
    model = seed_model(swsl.ResNeXt((1, 1, 1, 1), 2, 4, len(LABELS)))
    swsl.export_model(model, path, spec=SPEC, labels=LABELS, license="CC-BY-NC-4.0")
    return path


class Served:
    def __init__(self, frozen: Path) -> None:
        self.process = subprocess.Popen(
            swsl_command("serve", frozen, "--port", 0), stderr=subprocess.PIPE, text=True, env=subprocess_environment()
        )  # fmt: skip
        assert self.process.stderr
        said = iter(self.process.stderr.readline, "")
        self.url = next(found[0] for line in said if (found := re.search(r"http://127[\d.]+:\d+", line)))

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=60)


@pytest.fixture
def served(frozen: Path) -> Iterator[Served]:
    for needed in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        pytest.importorskip(needed, reason="the server needs more: pip install 'swsl[serve]'")
    server = Served(frozen)
    yield server
    server.stop()


@pytest.fixture
def page(served: Served) -> Iterator[Browser]:
    with chromium() as browser:
        browser.open(f"{served.url}/")
        browser.wait("document.getElementById('about').textContent")
        yield browser


def text(page: Browser, selector: str) -> list[str]:
    return page.value(f"[...document.querySelectorAll({selector!r})].map((found) => found.textContent)")


def pictures(page: Browser, selector: str) -> list[Image.Image]:
    """Those that the page shows, and has decoded."""
    page.value(f"Promise.all([...document.querySelectorAll({selector!r})].map((image) => image.decode()))")
    sources = page.value(f"[...document.querySelectorAll({selector!r})].map((image) => image.src)")
    prefix = "data:image/png;base64,"
    assert all(source.startswith(prefix) for source in sources)
    return [
        Image.open(io.BytesIO(base64.b64decode(source.removeprefix(prefix), validate=True))) for source in sources
    ]  # fmt: skip


def wait_for_maps(page: Browser) -> None:
    page.wait(
        "!document.getElementById('maps').hidden || document.getElementById('status').className == 'bad'"
    )
    assert text(page, "#status.bad") == []


def complaints(page: Browser) -> list[Any]:
    printed = [told for told in page.told("Runtime.consoleAPICalled") if told["type"] in ("error", "warning")]
    return [*page.told("Runtime.exceptionThrown"), *printed, *page.told("Log.entryAdded")]


def test_a_photograph_gets_its_crop_bars_and_maps(
    page: Browser, served: Served, frozen: Path, photo: Path
) -> None:
    page.choose("#file", photo)
    wait_for_maps(page)
    with swsl.Runner(frozen) as runner:
        (expected,), info = runner.classify([photo], top_k=5), runner.info
    shown = [f"{100 * prediction.probability:.1f}\u00a0%" for prediction in expected]
    labels = [prediction.label for prediction in expected]
    assert text(page, "#bars .row span:first-child") == labels
    assert text(page, "#bars .row span:last-child") == shown
    widths = page.value(
        "[...document.querySelectorAll('.bar div')].map((bar) => parseFloat(bar.style.width))"
    )
    assert widths == pytest.approx([100 * prediction.probability for prediction in expected], abs=0.01)
    assert f"engine: {info.name}, {info.dtype} on {info.device}" in text(page, "#about")[0]
    assert "CC-BY-NC-4.0" in text(page, "#about")[0]
    assert text(page, "h1") == [f"A model of {len(LABELS)} classes"]

    (crop,) = pictures(page, "#photo")
    plain = swsl.preprocess(swsl.load_image(photo), replace(SPEC, mean=(0, 0, 0), std=(1, 1, 1)))
    assert crop.tobytes() == bytes((255 * plain).round().byte().permute(1, 2, 0).flatten().tolist())
    overlays = pictures(page, "#maps img")
    assert len(overlays) == 3
    assert len({picture.tobytes() for picture in (crop, *overlays)}) == 4
    for overlay in overlays:
        assert overlay.size == crop.size
        assert len(overlay.getcolors(1 << 16)) > 100
    captions = [f"{label}, {share}" for label, share in zip(labels, shown, strict=True)]
    assert text(page, "#maps figcaption") == captions[:3]

    asked = [told["request"]["url"] for told in page.told("Network.requestWillBeSent")]
    assert {f"{served.url}/{path}" for path in ("", "metadata", "classify?top_k=5", "explain")} == {
        url for url in asked if not url.startswith(("data:", f"blob:{served.url}/"))
    }
    assert complaints(page) == []


def test_what_goes_wrong_is_shown_in_the_servers_words(
    page: Browser, served: Served, photo: Path, tmp_path: Path
) -> None:
    page.drop(photo)
    wait_for_maps(page)
    bad = tmp_path / "<i>bad.jpg"
    bad.write_bytes(photo.read_bytes()[:1000])
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{served.url}/classify", bad.read_bytes())
    page.drop(bad)
    page.wait("document.getElementById('status').className == 'bad'")
    assert text(page, "#status") == [f"{bad.name}: {json.load(refused.value)['error']}"]
    assert page.value("document.getElementById('answer').hidden")
    page.drop(photo)
    wait_for_maps(page)
    assert text(page, "#status") == [photo.name]
    served.stop()
    page.drop(photo)
    page.wait("document.getElementById('status').className == 'bad'")
    assert "No answer: the server has stopped" in text(page, "#status")[0]
    assert not page.told("Runtime.exceptionThrown")


def test_a_pasted_photograph_and_the_newest_of_several(page: Browser, photo: Path, tmp_path: Path) -> None:
    whole = base64.b64encode(photo.read_bytes()).decode()
    page.value(f"""
        const data = new DataTransfer();
        data.items.add(new File([Uint8Array.from(atob("{whole}"), (c) => c.charCodeAt(0))], "pasted.jpg"));
        dispatchEvent(new ClipboardEvent("paste", {{ clipboardData: data }}));
    """)
    wait_for_maps(page)
    assert text(page, "#status") == ["pasted.jpg"]
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"")
    page.drop(bad)
    page.drop(photo)
    wait_for_maps(page)
    assert text(page, "#status") == [photo.name]
    assert len(text(page, "#bars li")) == 5
    assert len(text(page, "#maps figure")) == 3
    assert not page.told("Runtime.exceptionThrown")


def test_a_network_without_maps_says_why(page: Browser, photo: Path) -> None:
    page.value("""
        const original = fetch;
        fetch = async (path, options) => {
            const response = await original(path, options);
            if (path != "explain") return response;
            const { crop, predictions } = await response.json();
            for (const each of predictions) delete each.overlay;
            return Response.json({ crop, predictions, no_overlay: "it has no <b>features</b>" });
        };
    """)
    page.choose("#file", photo)
    wait_for_maps(page)
    assert text(page, "#maps > div") == ["it has no <b>features</b>"]
    assert pictures(page, "#photo")
    assert pictures(page, "#maps img") == []
    assert complaints(page) == []


def test_it_fits_a_phone_has_two_themes_and_needs_no_mouse(page: Browser, photo: Path) -> None:
    page.press("Tab")
    assert page.value("document.activeElement.id") == "file"
    page.choose("#file", photo)
    wait_for_maps(page)
    for width in (320, 700, 1400):
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        assert page.value("document.documentElement.scrollWidth <= innerWidth")
    backgrounds = set()
    for theme in ("light", "dark"):
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        backgrounds.add(page.value("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2


def test_it_can_load_and_tell_nothing_elsewhere(page: Browser) -> None:
    """Whatever a file or label made it do."""
    page.value("fetch('http://127.0.0.2:9/').catch(() => 0)")
    page.value(
        "new Promise((done) => { const image = new Image(); image.onerror = done; image.src = 'http://127.0.0.2:9/x.png'; })"
    )
    told = " ".join(each["entry"]["text"] for each in page.told("Log.entryAdded"))
    for what in ("'http://127.0.0.2:9/' violates", "'http://127.0.0.2:9/x.png' violates"):
        assert f"{what} the following Content Security Policy" in told
