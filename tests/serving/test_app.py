"""The routes, in this process: what is answered, and in which words it is refused."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, seed_model

import swsl
from swsl.deploy.frozen import FrozenRunner
from swsl.deploy.runner import Runner, build_info
from swsl.preprocess import preprocess_batch

pytestmark = pytest.mark.slow  # the packages are of the extra `serve`
pytest.importorskip("fastapi", reason="the server needs the extra `serve`: pip install '.[serve]'")
testclient = pytest.importorskip(
    "fastapi.testclient", reason="the test client needs httpx: pip install httpx"
)

from swsl.serving import bodies  # noqa: E402
from swsl.serving.app import make_app  # noqa: E402
from swsl.serving.service import Service  # noqa: E402

PHOTO = (ROOT / "swsl" / "cli" / "chelsea.jpg").read_bytes()
LABELS = ("A", "B", "C", "D", "E")
BYTES = 1 << 20


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "tiny.pt"
    network = seed_model(swsl.ResNeXt((1, 1, 1, 1), groups=2, width_per_group=4, num_classes=5))
    swsl.export_model(network, path, spec=swsl.PreprocessSpec(input_size=(64, 64)), labels=LABELS)
    return path


@pytest.fixture(scope="module", params=["compiled", "PyTorch"])
def runner(file: Path, request: pytest.FixtureRequest) -> Any:
    if request.param == "PyTorch":
        return lambda: FrozenRunner(file, batch_size=4)
    if not build_info()["compiled"]:
        pytest.skip(build_info()["reason"])
    return lambda: Runner(file, batch_size=4)


@pytest.fixture
def service(file: Path, runner: Any) -> Iterator[Service]:
    made = Service(file, runner(), max_queue=8)
    yield made
    made.close()


@pytest.fixture
def client(service: Service) -> Iterator[Any]:
    with testclient.TestClient(make_app(service, max_bytes=BYTES), raise_server_exceptions=False) as made:
        yield made


def in_json(*images: bytes) -> dict[str, Any]:
    return {"json": [base64.b64encode(image).decode() for image in images]}


def sample(client: Any, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split(" ")[0] == name)


def test_an_image_is_answered_as_the_runner_does(client: Any, service: Service) -> None:
    (expected,) = service.runner.run([PHOTO], ("predictions", "embedding"), top_k=2)
    answer = client.post("/classify?top_k=2", content=PHOTO)
    assert answer.status_code == 200
    found = answer.json()["predictions"]
    assert [(p["label"], p["index"]) for p in found] == [(p.label, p.index) for p in expected.predictions]
    for one, other in zip(found, expected.predictions, strict=True):
        assert one["probability"] == pytest.approx(other.probability, rel=1e-5)
    assert len(client.post("/classify", content=PHOTO).json()["predictions"]) == 5
    assert len(client.post("/classify?top_k=99", content=PHOTO).json()["predictions"]) == 5
    embedding = torch.tensor(client.post("/embed", content=PHOTO).json()["embedding"])
    torch.testing.assert_close(embedding, expected.embedding)
    plain = client.post("/embed", content=PHOTO, headers={"Accept": "application/octet-stream"})
    assert torch.equal(torch.frombuffer(bytearray(plain.content), dtype=torch.float32), embedding)


def test_several_images_fail_alone(client: Any) -> None:
    files = [("a", ("one.jpg", PHOTO)), ("a", ("two.jpg", b"no image")), ("b", ("three.jpg", PHOTO))]
    answer = client.post("/classify?top_k=1", files=files)
    assert answer.status_code == 200
    first, second, third = answer.json()["results"]
    assert [row["name"] for row in (first, second, third)] == ["one.jpg", "two.jpg", "three.jpg"]
    assert first["predictions"] == third["predictions"]
    assert "predictions" not in second
    assert second["error"].startswith("two.jpg: not an image")
    answer = client.post("/embed", **in_json(PHOTO, b"", PHOTO))
    assert answer.status_code == 200
    first, second, third = answer.json()["results"]
    assert len(first["embedding"]) == len(third["embedding"]) == 2048
    assert second["error"].startswith("image 1: is empty")
    none = client.post("/classify", **in_json(b"x", b"y"))
    assert none.status_code == 400
    assert none.json()["error"] == "none of 2 images can be used"
    assert len(none.json()["results"]) == 2
    one = client.post("/classify", **in_json(b"x"))
    assert one.status_code == 400
    assert one.json()["error"] == one.json()["results"][0]["error"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"content": b"no image"}, "image bytes: not an image in a format that Pillow reads"),
        ({"content": b""}, "image bytes: is empty"),
        ({"content": PHOTO[:4000]}, "image bytes: "),
        ({"json": {"a": 1}}, "body: expected a list of images"),
        ({"json": []}, "body: expected a list of images"),
        ({"json": [base64.b64encode(PHOTO).decode(), 7]}, "image 1: expected an image file's bytes as base64"),
        ({"content": b"[", "headers": {"Content-Type": "application/json"}}, "body: no JSON"),
        ({"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}, "body: no JSON"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, "body: no multipart/form-data"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, "body: "),
        ({"data": {"a": "b"}, "files": {"c": ("c", b"d")}}, "body: a: expected files"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused(client: Any, options: dict[str, Any], words: str) -> None:
    answer = client.post("/classify", **options)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"].startswith(words)
    assert client.post("/classify", content=PHOTO).status_code == 200


def test_no_path_and_no_url_of_a_client_is_opened(client: Any, server: Any, tmp_path: Path) -> None:
    server.files["/photo.jpg"] = PHOTO
    (tmp_path / "photo").write_bytes(PHOTO)
    for name in (f"{server.url}/photo.jpg", str(tmp_path / "photo"), "photo"):
        as_json = client.post("/classify", json=[name])
        assert as_json.status_code == 400
        assert client.post("/classify", content=name.encode()).status_code == 400
        as_file = client.post("/classify", files={"file": (name, name.encode())})
        assert as_file.status_code == 400
        assert as_file.json()["results"][0]["error"].startswith(f"{name}: not an image")
    assert server.requests == []


def test_limits(client: Any, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "LINGER_SECONDS", 0.1)
    for content in (b"x" * (BYTES + 1), iter([b"x" * BYTES, b"x"])):
        large = client.post("/classify", content=content)
        assert large.status_code == 413
        assert large.json() == {"error": f"body: expected at most {BYTES} bytes"}
        assert large.headers["Connection"] == "close"
    for many in (in_json(*[b"x"] * 9), {"files": [("a", ("a", b"x"))] * 9}):
        assert client.post("/classify", **many).status_code == 413
    assert len(client.post("/classify", **in_json(*[PHOTO] * 8)).json()["results"]) == 8
    service.runner.max_pixels = 1000  # of PyTorch's; the compiled one has it in its options
    if isinstance(service.runner, FrozenRunner):
        answer = client.post("/classify", content=PHOTO)
        assert answer.status_code == 400
        assert "at most 1000" in answer.json()["error"]


def test_every_error_is_json(client: Any) -> None:
    for answer, status in (
        (client.get("/nothing"), 404),
        (client.get("/classify"), 405),
        (client.post("/classify?top_k=0", content=PHOTO), 400),
        (client.post("/classify?top_k=x", content=PHOTO), 400),
        (client.post("/explain?top_k=11", content=PHOTO), 400),
    ):
        assert answer.status_code == status
        assert isinstance(answer.json()["error"], str)
    assert client.post("/classify?top_k=x", content=PHOTO).json()["error"].startswith("top_k: ")


def test_what_it_says_of_itself(client: Any, service: Service) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.head("/health").status_code == 200
    facts = json.loads(client.get("/metadata").text, parse_constant=pytest.fail)
    assert facts["labels"] == list(LABELS)
    assert facts["fingerprint"] == service.runner.fingerprint
    assert facts["preprocess"]["input_size"] == [64, 64]
    assert facts["engine"]["batch_size"] == 4
    assert facts["limits"] == {"bytes": BYTES, "images": 8, "pixels": service.runner.max_pixels}
    assert "<html" in client.get("/").text
    assert {"/classify", "/embed", "/explain"} <= set(client.get("/openapi.json").json()["paths"])


def test_explanation(client: Any, service: Service) -> None:
    from PIL import Image

    shown = client.post("/explain?top_k=2", content=PHOTO).json()
    assert set(shown) == {"crop", "predictions"}
    predicted = client.post("/classify?top_k=2", content=PHOTO).json()["predictions"]
    assert [{**row, "overlay": ""} for row in shown["predictions"]] == [
        {**row, "overlay": ""} for row in predicted
    ]
    for png in (shown["crop"], *(row["overlay"] for row in shown["predictions"])):
        assert base64.b64decode(png).startswith(b"\x89PNG")
    crop = Image.open(BytesIO(base64.b64decode(shown["crop"])))
    batch = preprocess_batch([crop], swsl.PreprocessSpec((64, 64), crop_pct=1.0))
    assert torch.equal(batch, service.runner.preprocess([PHOTO]))  # the very pixels
    assert client.post("/explain", content=b"x").status_code == 400
    assert client.post("/explain", **in_json(PHOTO, PHOTO)).status_code == 413


def test_metrics_count_what_was_computed(client: Any) -> None:
    client.post("/classify", **in_json(*[PHOTO] * 6, b"x"))
    client.get("/anything")
    client.get("/else")
    assert sample(client, "swsl_images_total") == 7
    assert sample(client, "swsl_image_errors_total") == 1
    assert sample(client, "swsl_decode_seconds_count") == sample(client, "swsl_queue_seconds_count") == 6
    assert sample(client, "swsl_batch_size_sum") == 6
    assert 2 <= sample(client, "swsl_batch_size_count") == sample(client, "swsl_forward_seconds_count") <= 6
    assert sample(client, "swsl_forward_seconds_sum") > 0
    assert sample(client, 'swsl_requests_total{path="other",status="404"}') == 2
    assert sample(client, 'swsl_requests_total{path="/classify",status="200"}') == 1


def test_a_full_queue_and_the_end(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image is under way, two wait, and the next is told to come again; all three are answered after the end was asked for."""
    from swsl.deploy.batching import DynamicBatcher

    may_go_on, sources = threading.Event(), DynamicBatcher._sources

    def held(batcher: DynamicBatcher) -> Iterator[Any]:
        for source in sources(batcher):
            may_go_on.wait(60)
            yield source

    monkeypatch.setattr(DynamicBatcher, "_sources", held)
    service = Service(file, FrozenRunner(file), max_queue=2)
    with (
        testclient.TestClient(make_app(service, max_bytes=BYTES)) as client,
        ThreadPoolExecutor(3) as pool,
    ):
        answers = []
        for waiting in (0, 1, 2):
            answers.append(pool.submit(client.post, "/classify", content=PHOTO))
            wait_until(lambda: service._batcher._waiting.qsize() == waiting)  # noqa: B023
        for options in ({"content": PHOTO}, in_json(PHOTO, PHOTO)):
            refused = client.post("/classify", **options)
            assert refused.status_code == 503
            assert refused.headers["Retry-After"] == "1"
            assert "the queue is full: 2 images wait" in refused.json()["error"]
        client.portal.call(service.shut)
        assert client.get("/health").status_code == 503
        closing = client.post("/classify", content=PHOTO)
        assert closing.status_code == 503
        assert closing.json() == {"error": "the server is closing"}
        may_go_on.set()
        assert [answer.result(60).status_code for answer in answers] == [200, 200, 200]
    service.close()


def test_a_failed_runner_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no more memory")

    monkeypatch.setattr(FrozenRunner, "_compute", fail)
    service = Service(file, FrozenRunner(file))
    with testclient.TestClient(make_app(service, max_bytes=BYTES), raise_server_exceptions=False) as client:
        answer = client.post("/classify", content=PHOTO)
        assert answer.status_code == 500
        assert answer.json() == {"error": "RuntimeError: no more memory"}
        assert client.get("/health").json() == {"status": "failed"}
        assert client.post("/classify", content=PHOTO).status_code == 503
        assert 'path="/classify",status="500"} 1.0' in client.get("/metrics").text
    service.close()


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
