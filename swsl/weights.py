"""Where a state dict comes from, how it is checked, and what a mismatch says."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .progress import Progress
from .resnext import ResNeXt

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
        raise WeightsError(
            f"weights: {text}: {'is a directory' if path.is_dir() else 'no such file'}; expected a state dict"
        )
    return path


def cache_path(url: str) -> Path:
    """Where the file of ``url`` is kept: torch.hub's checkpoint directory, which $TORCH_HOME moves."""
    return Path(torch.hub.get_dir(), "checkpoints", url.split("?")[0].rsplit("/", 1)[-1])


def download(url: str, *, sha256_prefix: str = "", progress: bool = True) -> Path:
    """Fetch a file into torch.hub's checkpoint directory; a cached and checked one is used without any network access.

    A file that was there before (from torch.hub, say) is hashed once and the result is recorded beside it.

    Args:
        url: http or https.
        sha256_prefix: hex digits with which the file's SHA-256 must begin; "" checks nothing.
        progress: show a bar on a terminal.

    Raises:
        WeightsError: no network, an HTTP error, a download cut short, or the wrong hash; no bad file is kept.
    """
    path = cache_path(url)
    if not url.split("?")[0].rsplit("/", 1)[-1]:
        raise WeightsError(f"weights: {url}: expected a URL that ends in the name of a file")
    if path.is_file() and _is_checked(path, url, sha256_prefix):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own for each process: two may download at once, and the last rename wins with an equal file.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".", suffix=".partial")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            digest = _fetch(url, file, path, progress)
        if not digest.startswith(sha256_prefix):
            raise WeightsError(
                f"weights: {url}: SHA-256 is {digest[:16]}…, expected {sha256_prefix}…; the file was not kept. "
                "Try again; if it happens twice, the server's file has changed"
            )
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private, but caches are shared
        os.replace(temporary, path)
        _record(path, url, digest)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _fetch(url: str, file: Any, path: Path, progress: bool) -> str:
    import http.client
    import urllib.error
    import urllib.request

    advice = f"Put the file at {path} by other means, or give its path as weights="
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
            raise WeightsError(f"weights: {path}: no space left for the download") from error
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
            _record(path, url, digest)
    if digest.startswith(sha256_prefix):
        return True
    warnings.warn(
        f"{path}: SHA-256 is {digest[:16]}…, expected {sha256_prefix}…; removed, downloading it again",
        stacklevel=4,
    )
    path.unlink(missing_ok=True)
    return False


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The file's SHA-256 in hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Read tensors from a ``.pth``/``.pt`` (legacy or zip) or ``.safetensors`` file, told apart by their first bytes.

    ``{"state_dict": …}`` and ``{"model": …}`` wrappers and ``module.`` prefixes are unwrapped. No code in the file is run.

    Raises:
        WeightsError: truncated, in another format, no state dict, or wanting to run code.
    """
    path = Path(path)
    with open(path, "rb") as file:
        head = file.read(9)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        content = _read_safetensors(path)
    else:
        content = read_pickled(path, head)
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(key, str) for key in content):
        raise WeightsError(
            f"weights: {path}: expected a state dict (names to tensors), found {_describe(content)}"
        )
    strangers = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if strangers:
        raise WeightsError(
            f"weights: {path}: expected a state dict (names to tensors), found {_describe(content[strangers[0]])} "
            f"under {strangers[0]!r}"
        )
    if all(key.startswith("module.") for key in content):
        content = {key.removeprefix("module."): value for key, value in content.items()}
    return dict(content)


def _describe(content: Any) -> str:
    return "an empty dict" if content == {} else f"a {type(content).__name__}"


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise WeightsError(
            f"weights: {path}: reading this format needs safetensors: pip install safetensors"
        ) from error
    try:
        return load_file(path, device="cpu")
    except SafetensorError as error:
        raise WeightsError(
            f"weights: {path}: truncated or damaged ({error}); copy or download it again"
        ) from error


def read_pickled(path: Path, head: bytes) -> Any:
    """The content of a file that ``torch.save`` wrote and that begins with ``head``; no code in it is run.

    Raises:
        WeightsError: truncated, in another format, or wanting to run code.
    """
    damaged = f"weights: {path}: truncated or damaged; copy or download it again"
    if head[:4] != b"PK\x03\x04" and head[:1] != b"\x80":
        found = "an empty file" if not head else f"bytes {head[:4]!r}"
        raise WeightsError(f"weights: {path}: expected a .pth, .pt or .safetensors file, found {found}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.load.*dispatching to 'torch.jit.load'")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "truncated" in str(error):
            raise WeightsError(damaged) from error
        culprit = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
        raise WeightsError(
            f"weights: {path}: refused, since loading it would run code{f' ({culprit[1]})' if culprit else ''}. "
            "Expected tensors only: in the program that wrote it, save model.state_dict()"
        ) from error
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
    ) as error:
        if "TorchScript" in str(error):
            raise WeightsError(
                f"weights: {path}: is a TorchScript module, expected a state dict; a frozen module runs with --runner"
            ) from error
        raise WeightsError(
            f"{damaged} ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error


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
        problems.append(f"{len(missing)} missing ({_first(missing)})")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected ({_first(unexpected)})")
    if misfits:
        shapes = [
            f"{key} {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}" for key in misfits
        ]
        problems.append(f"{len(misfits)} of another shape ({_first(shapes)})")
    if problems:
        advice = ""
        if "fc.weight" in misfits:
            advice = f"; for this file's classifier say num_classes={state['fc.weight'].shape[0]}"
        raise WeightsError(f"weights: {source} does not fit the model: {'; '.join(problems)}{advice}")
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise WeightsError(
            f"weights: {source}: {len(broken)} tensors hold NaN or infinity ({_first(broken)}); "
            "the file is damaged or from a diverged run"
        )
    # A plain dict has no version metadata, so BatchNorm accepts that num_batches_tracked is not there.
    model.load_state_dict(state, strict=True)


def _first(items: list[str]) -> str:
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
