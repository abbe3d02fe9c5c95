"""Downloading, reading, checking and loading weights; every error message."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import types
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from conftest import NAMES, Server, save_published_layout, seeded_model, small_model, subprocess_environment

import swsl
from swsl import variants, weights
from swsl.resnext import ResNeXt

NAME = "swsl_resnext50_32x4d"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


# the published layout


def check_published_layout(name: str, folder: Path) -> None:
    variant = swsl.VARIANTS[name]
    model = seeded_model(name)
    path = save_published_layout(model, folder / "seeded.pth")
    tensors = [key for key in model.state_dict() if not key.endswith("num_batches_tracked")]
    with open(path, "rb") as file:
        for _ in range(4):  # magic number, protocol, system information, the state dict
            storage_keys: list[str] = []

            class Keys(pickle.Unpickler):
                def persistent_load(self, saved: tuple) -> object:
                    storage_keys.append(saved[2])  # noqa: B023
                    return torch.storage.UntypedStorage(0)

                def find_class(self, module: str, name: str) -> object:
                    if name == "_rebuild_tensor_v2":
                        return lambda *_: None
                    return super().find_class(module, name)

            Keys(file).load()
    # A key is an address in decimal digits and stands in the file twice; the published ones have one digit more than ours.
    assert len(storage_keys) == len(tensors)
    published_digits = 15
    missing_digits = sum(2 * (published_digits - len(key)) for key in storage_keys)
    assert variant.file_size - path.stat().st_size == missing_digits
    assert same(swsl.create_model(name, weights=path).eval(), model)


def test_published_layout(tmp_path: Path) -> None:
    check_published_layout(NAME, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[1:])
def test_published_layout_of_the_large_variants(name: str, tmp_path: Path) -> None:
    check_published_layout(name, tmp_path)


# downloading


@pytest.fixture
def published(server: Server, weights50: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The 50's table entry points at the local server, which has seeded weights for it."""
    data = weights50.read_bytes()
    prefix = sha256(data)[:8]
    server.files[f"/seeded-{prefix}.pth"] = data
    entry = dataclasses.replace(
        swsl.VARIANTS[NAME], url=f"{server.url}/seeded-{prefix}.pth", sha256_prefix=prefix
    )
    monkeypatch.setattr(variants, "VARIANTS", types.MappingProxyType({**swsl.VARIANTS, NAME: entry}))
    return server


def test_pretrained_downloads_once_and_then_needs_no_network(
    published: Server, model50: ResNeXt, torch_home: Path
) -> None:
    assert same(swsl.create_model(NAME).eval(), model50)
    assert len(published.requests) == 1
    published.stop()
    assert same(swsl.create_model(NAME).eval(), model50)
    folder = torch_home / "hub" / "checkpoints"
    file, record = sorted(folder.iterdir())
    assert file.suffix == ".pth"
    assert json.loads(record.read_text())["sha256"] == sha256(file.read_bytes())


def test_a_file_cached_by_others_is_checked_once(
    server: Server, torch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, data = f"{server.url}/w-1.pth", b"abc" * 1000
    path = weights.cache_path(url)
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    assert weights.download(url, sha256_prefix=sha256(data)[:8]) == path
    hashed = []
    monkeypatch.setattr(weights, "file_sha256", lambda path: hashed.append(path) or sha256(data))
    assert weights.download(url, sha256_prefix=sha256(data)[:8]) == path
    assert hashed == []
    path.write_bytes(data)  # touched since: the record no longer speaks of this file
    weights.download(url, sha256_prefix=sha256(data)[:8])
    assert hashed == [path]
    assert server.requests == []


GOOD = b"right" * 100


@pytest.fixture
def wrong(server: Server) -> Path:
    """A cached file with the wrong hash; the server has the good one."""
    server.files["/w.pth"] = GOOD
    path = weights.cache_path(f"{server.url}/w.pth")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"wrong")
    return path


def download_good(server: Server) -> Path:
    return weights.download(f"{server.url}/w.pth", sha256_prefix=sha256(GOOD)[:8])


def test_a_wrong_cached_file_is_kept_until_a_good_one_is_there(server: Server, wrong: Path) -> None:
    aside = wrong.with_name(f"w.pth.bad-{sha256(b'wrong')[:16]}")
    there: list[bytes] = []
    server.before_sending = lambda: there.append(aside.read_bytes())
    with pytest.warns(
        UserWarning, match=rf"expected .*; kept as {aside} until a good one .*downloading it again"
    ):
        download_good(server)
    assert there == [b"wrong"]
    assert wrong.read_bytes() == GOOD
    assert sorted(wrong.parent.iterdir()) == [wrong, wrong.with_name("w.pth.checked.json")]


@pytest.mark.filterwarnings("ignore:.*kept as")
def test_without_a_network_a_wrong_cached_file_stays_and_its_place_is_said(
    server: Server, wrong: Path
) -> None:
    server.stop()
    aside = wrong.with_name(f"w.pth.bad-{sha256(b'wrong')[:16]}")
    for _ in range(2):  # the second time nothing has to be renamed
        with pytest.raises(
            swsl.WeightsError, match=rf"cannot be reached .*weights=.*with the wrong hash, .*{aside}"
        ):
            download_good(server)
        assert list(wrong.parent.iterdir()) == [aside]
    assert aside.read_bytes() == b"wrong"
    assert weights.locate(aside) == aside
    wrong.write_bytes(b"wrong too")  # another bad file, which must not take the first one's place
    with pytest.raises(swsl.WeightsError, match="cannot be reached") as caught:
        download_good(server)
    assert sorted(path.read_bytes() for path in wrong.parent.iterdir()) == [b"wrong", b"wrong too"]
    assert all(str(path) in str(caught.value) for path in wrong.parent.iterdir())
    wrong.write_bytes(GOOD)  # by other means, as the message says
    assert download_good(server) == wrong
    assert not list(wrong.parent.glob("*.bad-*"))


@pytest.mark.filterwarnings("ignore:.*kept as")
@pytest.mark.parametrize("fault", ["404", "cut short", "wrong again"])
def test_a_failed_download_leaves_a_wrong_cached_file(fault: str, server: Server, wrong: Path) -> None:
    if fault == "404":
        del server.files["/w.pth"]
    elif fault == "cut short":
        server.cut_short.add("/w.pth")
    else:
        server.files["/w.pth"] = b"something else"
    with pytest.raises(swsl.WeightsError, match=r"with the wrong hash, is kept: .*w.pth.bad-"):
        download_good(server)
    assert [path.read_bytes() for path in wrong.parent.iterdir()] == [b"wrong"]


@pytest.mark.filterwarnings("ignore:.*kept as")
def test_an_interrupted_download_leaves_a_wrong_cached_file(
    server: Server, wrong: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "_fetch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download_good(server)
    assert [path.read_bytes() for path in wrong.parent.iterdir()] == [b"wrong"]


def test_a_cache_that_cannot_be_written_to(
    server: Server, wrong: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:  # root, as which tests may run, is refused nothing
        patched.setattr(os, "replace", refuse)
        with pytest.raises(
            swsl.WeightsError,
            match=rf"{wrong}: SHA-256 .*cannot be renamed .*Permission denied.*\$TORCH_HOME",
        ):
            download_good(server)
    assert wrong.read_bytes() == b"wrong"
    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(
        swsl.WeightsError, match=r"cannot be written to \(Permission denied\); set \$TORCH_HOME"
    ):
        weights.download(f"{server.url}/other.pth")


@pytest.mark.parametrize("meanwhile", ["a good file", "set aside"])
def test_another_process_mends_the_cache_while_this_one_hashes(
    meanwhile: str, server: Server, wrong: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_sha256 = weights.file_sha256

    def slow(path: Path) -> str:
        monkeypatch.setattr(weights, "file_sha256", file_sha256)
        digest = file_sha256(path)
        os.replace(path, path.with_name("w.pth.bad-x"))
        if meanwhile == "a good file":
            wrong.write_bytes(GOOD)
        return digest

    monkeypatch.setattr(weights, "file_sha256", slow)
    assert download_good(server).read_bytes() == GOOD
    assert len(server.requests) == (meanwhile == "set aside")


def test_wrong_hash_is_not_kept(server: Server, torch_home: Path) -> None:
    server.files["/w-00000000.pth"] = b"something else"
    with pytest.raises(swsl.WeightsError, match="SHA-256 is .*expected 00000000…; the file was not kept"):
        weights.locate(f"{server.url}/w-00000000.pth")
    assert list((torch_home / "hub" / "checkpoints").iterdir()) == []


def test_a_download_cut_short_is_not_kept(server: Server, torch_home: Path) -> None:
    server.files["/w.pth"] = bytes(100_000)
    server.cut_short.add("/w.pth")
    with pytest.raises(swsl.WeightsError, match="cut short at 50000 of 100000 bytes. Try again"):
        weights.download(f"{server.url}/w.pth")
    assert list((torch_home / "hub" / "checkpoints").iterdir()) == []


def test_http_errors_name_the_code_and_the_place(server: Server) -> None:
    with pytest.raises(
        swsl.WeightsError, match=r"answered 404 .*Put the file at .*checkpoints/w-00000000.pth .*weights="
    ):
        weights.locate(f"{server.url}/w-00000000.pth")


def test_no_network_says_where_the_file_would_be(server: Server) -> None:
    server.stop()
    with pytest.raises(
        swsl.WeightsError,
        match=r"cannot be reached .*Put the file at .*checkpoints/w-00000000.pth .*weights=",
    ):
        weights.locate(f"{server.url}/w-00000000.pth")
    # Nothing tells one w.pth from another, so a file put into the cache would not be used.
    with pytest.raises(
        swsl.WeightsError, match=r"cannot be reached \(.*\)\. Give the path of a file .*weights=$"
    ):
        weights.locate(f"{server.url}/w.pth")


def test_two_processes_download_at_once(server: Server, torch_home: Path) -> None:
    data = bytes(range(256)) * 4000
    prefix = sha256(data)[:8]
    server.files["/w.pth"] = data
    both_asked = threading.Barrier(2, timeout=60)
    server.before_sending = both_asked.wait
    code = (
        f"from swsl import weights; print(weights.download('{server.url}/w.pth', sha256_prefix='{prefix}'))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=subprocess_environment()
        )
        for _ in range(2)
    ]
    paths = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(server.requests) == 2
    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == data
    assert len(list((torch_home / "hub" / "checkpoints").iterdir())) == 2  # the file and its record


def test_urls_of_the_same_name_are_not_mixed_up(server: Server) -> None:
    server.files.update({"/a/w.pth": b"a", "/b/w.pth": b"b"})
    assert weights.locate(f"{server.url}/a/w.pth").read_bytes() == b"a"
    assert weights.locate(f"{server.url}/b/w.pth").read_bytes() == b"b"
    server.stop()
    assert weights.locate(f"{server.url}/b/w.pth").read_bytes() == b"b"


# loading


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(swsl.WeightsError, match="nowhere.pth: no such file; expected a state dict"):
        swsl.create_model(NAME, weights=tmp_path / "nowhere.pth")
    (tmp_path / "timms").mkdir()
    (tmp_path / "timms" / "config.json").touch()
    with pytest.raises(swsl.WeightsError, match=f"expected a state dict; say local-dir:{tmp_path}/timms$"):
        swsl.create_model("swsl_resnext50_32x4d", weights=tmp_path / "timms")
    with pytest.raises(swsl.WeightsError, match="is a directory; expected a state dict$"):
        swsl.create_model(NAME, weights=tmp_path)
    for wrong in ("", 3):
        with pytest.raises(TypeError, match=f"weights: expected a path or URL, got {wrong!r}"):
            swsl.create_model(NAME, weights=wrong)
    with pytest.raises(swsl.WeightsError, match="expected a URL that ends in the name of a file"):
        swsl.create_model(NAME, weights="https://127.0.0.1/folder/?name=w.pth")


def test_other_class_counts_keep_everything_but_the_classifier(weights50: Path, model50: ResNeXt) -> None:
    torch.manual_seed(0)
    model = swsl.create_model(NAME, weights=weights50, num_classes=7).eval()
    assert torch.equal(model.layer4[2].conv3.weight, model50.layer4[2].conv3.weight)
    assert model.fc.weight.shape == (7, 2048)
    assert 0 < model.fc.weight.std() < 0.03  # nn.Linear's own initialisation
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        pooled = model50.forward_head(model50.forward_features(x), pre_logits=True)
        assert torch.equal(swsl.create_model(NAME, weights=weights50, num_classes=0).eval()(x), pooled)


def test_a_fine_tuned_classifier_is_kept() -> None:
    saved, model = small_model(7), small_model(7)
    weights.load_into(model, saved.state_dict(), "w.pth")
    assert same(model, saved)
    with pytest.raises(swsl.WeightsError, match=r"2 of another shape \(fc.weight .*say num_classes=7"):
        weights.load_into(small_model(1000), saved.state_dict(), "w.pth")


def test_another_variants_file_is_named(weights50: Path) -> None:
    with pytest.raises(
        swsl.WeightsError, match=r"seeded50.pth holds swsl_resnext50_32x4d, not swsl_resnext101_32x8d"
    ):
        swsl.create_model("swsl_resnext101_32x8d", weights=weights50)


def test_missing_and_unexpected_names_are_counted_and_few_are_shown(state: dict) -> None:
    for key in [key for key in state if key.startswith("layer4")]:
        state[f"other.{key}"] = state.pop(key)
    total = sum(key.startswith("other.") for key in state)
    tracked = sum(key.endswith("num_batches_tracked") and key.startswith("other.") for key in state)
    with pytest.raises(swsl.WeightsError) as caught:
        weights.load_into(small_model(), state, "w.pth")
    assert str(caught.value) == (
        f"weights: w.pth does not fit the model: {total - tracked} missing (layer4.0.conv1.weight, layer4.0.bn1.weight, "
        f"layer4.0.bn1.bias, …); {total} unexpected (other.layer4.0.conv1.weight, other.layer4.0.bn1.weight, "
        "other.layer4.0.bn1.bias, …)"
    )


def test_shapes_must_fit(state: dict) -> None:
    state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    with pytest.raises(
        swsl.WeightsError,
        match=r"1 of another shape \(conv1.weight \(64, 1, 7, 7\), expected \(64, 3, 7, 7\)",
    ):
        weights.load_into(small_model(), state, "w.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_must_be_finite(value: float, state: dict) -> None:
    state["bn1.weight"][3] = value
    with pytest.raises(swsl.WeightsError, match=r"1 tensors hold NaN or infinity \(bn1.weight\)"):
        weights.load_into(small_model(), state, "w.pth")


def test_torchvision_checkpoints_with_batch_counts_load(state: dict) -> None:
    assert any(key.endswith("num_batches_tracked") for key in state)
    model = small_model()
    weights.load_into(model, OrderedDict(state), "w.pth")
    assert torch.equal(model.conv1.weight, state["conv1.weight"])
