"""Where a file of weights comes from, how it is checked, and what a mismatch with the model says."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .resnext import ResNeXt
from .system.progress import Progress

StateDict = dict[str, Tensor]

_TIMEOUT_S = 20  # of a single network operation, not of the whole download


class WeightsError(RuntimeError):
    """Weights that cannot be had or do not fit. The message names the file and says what to do."""


def locate(source: str | os.PathLike[str], *, progress: bool = True) -> Path:
    """The local file of a path or URL; a URL is downloaded as `download` does.

    A URL whose file name ends in ``-<hex digits>`` before the suffix is checked against that as a SHA-256 prefix
    (torch.hub's convention).

    Raises:
        WeightsError: no such file, or the download failed.
        TypeError: neither a path nor a URL.
    """
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise TypeError(f"weights: expected a path or URL, got {source!r}")
    text = os.fspath(source)
    if re.match(r"https?://", text):
        prefix = re.search(r"-([0-9a-f]{8,64})\.[^/.]+$", text.split("?")[0])
        return download(text, sha256_prefix=prefix[1] if prefix else "", progress=progress)
    path = Path(text).expanduser()
    if not path.is_file():
        found = "is a directory" if path.is_dir() else "no such file"
        advice = f"; say local-dir:{text}" if (path / "config.json").is_file() else ""
        raise WeightsError(f"weights: {text}: {found}; expected a state dict{advice}")
    return path


def cache_path(url: str) -> Path:
    """Where the file of ``url`` is kept: torch.hub's checkpoint directory, which $TORCH_HOME moves."""
    return Path(torch.hub.get_dir(), "checkpoints", url.split("?")[0].rsplit("/", 1)[-1])


def download(url: str, *, sha256_prefix: str = "", progress: bool = True) -> Path:
    """Fetch a file into torch.hub's checkpoint directory; a cached and checked one is used without any network access.

    A file that was there before (from torch.hub, say) is hashed once and the result is recorded beside it.

    One with the wrong hash is renamed to ``<name>.bad-<its hash>`` and kept until a good one is there.

    Args:
        url: http or https.
        sha256_prefix: hex digits with which the file's SHA-256 must begin; "" checks nothing.
        progress: show a bar on a terminal.

    Raises:
        WeightsError: no network, an HTTP error, a download cut short, the wrong hash (no bad download is kept), or a cache
            that cannot be written to.
    """
    path = cache_path(url)
    if not url.split("?")[0].rsplit("/", 1)[-1]:
        raise WeightsError(f"weights: {url}: expected a URL that ends in the name of a file")
    try:
        if path.is_file() and _is_checked(path, url, sha256_prefix):
            return path
    except FileNotFoundError:
        pass  # another process has set it aside
    advice = "Give the path of a file had by other means as weights="
    if sha256_prefix:  # without one, nothing would tell a file put there from any other of its name
        advice = f"Put the file at {path} by other means, or give its path as weights="
    if kept := _kept_aside(path):
        advice += f". What was there, with the wrong hash, is kept: {', '.join(map(str, kept))}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own for each process: two may download at once, and the last rename wins with an equal file.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".", suffix=".partial")
    except OSError as error:
        raise WeightsError(
            f"weights: {path.parent}: cannot be written to ({error.strerror}); set $TORCH_HOME to another folder. {advice}"
        ) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            digest = _fetch(url, file, path, progress, advice)
        if not digest.startswith(sha256_prefix):
            raise WeightsError(
                f"weights: {url}: SHA-256 is {digest[:16]}…, expected {sha256_prefix}…; the file was not kept. "
                f"Try again; if it happens twice, the server's file has changed. {advice}"
            )
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private, but caches are shared
        os.replace(temporary, path)
        _record(path, url, digest)
        if sha256_prefix:
            _remove_kept(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _kept_aside(path: Path) -> list[Path]:
    return sorted(path.parent.glob(glob.escape(path.name) + ".bad-*"))


def _remove_kept(path: Path) -> None:
    for bad in _kept_aside(path):
        with contextlib.suppress(OSError):
            bad.unlink()


def _fetch(url: str, file: Any, path: Path, progress: bool, advice: str) -> str:
    import http.client
    import urllib.error
    import urllib.request

    digest = hashlib.sha256()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "swsl"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            length = int(response.headers.get("Content-Length") or 0)
            with Progress("bytes", length or None, enabled=progress) as bar:
                while chunk := response.read(1 << 18):
                    file.write(chunk)
                    digest.update(chunk)
                    bar.advance(len(chunk))
    except urllib.error.HTTPError as error:
        raise WeightsError(
            f"weights: {url}: the server answered {error.code} {error.reason}. {advice}"
        ) from error
    except http.client.IncompleteRead as error:
        raise WeightsError(f"weights: {url}: the download was cut short. Try again. {advice}") from error
    except OSError as error:  # URLError, timeouts and resets are all OSErrors, and so is a full disk
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WeightsError(f"weights: {path}: no space left for the download. {advice}") from error
        reason = getattr(error, "reason", error)
        raise WeightsError(f"weights: {url} cannot be reached ({reason}). {advice}") from error
    if length and bar.done != length:
        raise WeightsError(
            f"weights: {url}: the download was cut short at {bar.done} of {length} bytes. Try again. {advice}"
        )
    return digest.hexdigest()


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".checked.json")


def _record(path: Path, url: str, digest: str) -> None:
    status = path.stat()
    record = {"url": url, "sha256": digest, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    try:
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w") as file:
            json.dump(record, file)
        os.replace(name, _record_path(path))
    except OSError:
        pass  # a read-only cache still serves; it is only hashed again next time


def _is_checked(path: Path, url: str, sha256_prefix: str) -> bool:
    status = path.stat()
    try:
        record = json.loads(_record_path(path).read_text())
        current = record["bytes"] == status.st_size and record["mtime_ns"] == status.st_mtime_ns
        digest, recorded_url = str(record["sha256"]), record["url"]
    except (OSError, ValueError, KeyError, TypeError):
        current = False
    if not sha256_prefix:  # nothing but the URL tells one such file from another of the same name
        return current and recorded_url == url
    if not current:
        digest = file_sha256(path)
    if digest.startswith(sha256_prefix):
        if not current:
            _record(path, url, digest)
            _remove_kept(path)
        return True
    aside = path.with_name(f"{path.name}.bad-{digest[:16]}")  # so never in the place of another bad file
    found = f"{path}: SHA-256 is {digest[:16]}…, expected {sha256_prefix}…"
    if not os.path.samestat(path.stat(), status):  # another process has put a file there meanwhile
        return _is_checked(path, url, sha256_prefix)
    try:
        os.replace(path, aside)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise WeightsError(
            f"weights: {found}, and it cannot be renamed to make room for a good one ({error.strerror}). Set $TORCH_HOME to "
            "a folder that can be written to, or give a path as weights="
        ) from error
    warnings.warn(f"{found}; kept as {aside} until a good one is there; downloading it again", stacklevel=4)
    return False


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The file's SHA-256 in hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def load_into(model: ResNeXt, state: StateDict, source: str | os.PathLike[str]) -> None:
    """Load strictly, but for a classifier of another size where ``model.num_classes`` is not 1000: that one stays fresh.

    Args:
        source: what errors call the state dict.

    Raises:
        WeightsError: tensors missing, unexpected, of another shape, or holding NaN or infinity.
    """
    expected = model.state_dict()
    state = dict(state)
    if model.num_classes != 1000:
        for key in ("fc.weight", "fc.bias"):
            if key in state and (key not in expected or state[key].shape != expected[key].shape):
                del state[key]
                if key in expected:
                    state[key] = expected[key]

    # The published files have no num_batches_tracked, and only training with momentum=None would read it.
    optional = {key for key in expected if key.endswith(".num_batches_tracked")}
    missing = [key for key in expected if key not in state and key not in optional]
    unexpected = [key for key in state if key not in expected]
    misfits = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing ({first_few(missing)})")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected ({first_few(unexpected)})")
    if misfits:
        shapes = [
            f"{key} {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}" for key in misfits
        ]
        problems.append(f"{len(misfits)} of another shape ({first_few(shapes)})")
    if problems:
        advice = ""
        if "fc.weight" in misfits:
            advice = f"; for this file's classifier say num_classes={state['fc.weight'].shape[0]}"
        elif missing == ["fc.weight", "fc.bias"]:
            advice = "; the file has no classifier: say num_classes=0 for a model without one"
        raise WeightsError(f"weights: {source} does not fit the model: {'; '.join(problems)}{advice}")
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise WeightsError(
            f"weights: {source}: {len(broken)} tensors hold NaN or infinity ({first_few(broken)}); "
            "the file is damaged or from a diverged run"
        )
    # A plain dict has no version metadata, so BatchNorm accepts that num_batches_tracked is not there.
    model.load_state_dict(state, strict=True)


def first_few(items: list[str]) -> str:
    """A list as messages give it."""
    return ", ".join(items[:3]) + (", …" if len(items) > 3 else "")


def architecture_of(state: StateDict) -> tuple[tuple[int, ...], int, int] | None:
    """The (layers, groups, width_per_group) that the names and shapes of a ResNeXt's tensors tell; None for anything else."""
    kernel = state.get("layer1.0.conv2.weight")
    if kernel is None or kernel.ndim != 4 or kernel.shape[1] == 0:
        return None
    blocks = {
        match.groups() for key in state if (match := re.match(r"layer([1-4])\.(\d+)\.conv1\.weight", key))
    }
    layers = tuple(sum(stage == str(number) for stage, _ in blocks) for number in (1, 2, 3, 4))
    return layers, kernel.shape[0] // kernel.shape[1], kernel.shape[1]
