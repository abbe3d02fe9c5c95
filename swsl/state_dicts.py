"""State dicts out of files: plain ones, and those among all that training programs save. No code in a file is run."""

from __future__ import annotations

import os
import pickle
import re
import threading
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .weights import StateDict, WeightsError, first_few

OWN_KEYS = frozenset({"format", "architecture", "model"})
"""What tells a checkpoint of `save_checkpoint` from others."""

# Every ResNeXt has it, so what stands before it is a network's prefix; an optimizer, which names parameters, has not.
_MARK = "layer1.0.bn1.running_mean"

# What wrappers put between the names of modules that they wrap one by one.
_WRAPPED = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


class _Ignored:
    """Stands for an object beside the tensors: of its own type nothing is imported, and nothing is run."""

    def __new__(cls, *_: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _IgnoredMapping:
    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()  # the one kind of dict that may have attributes, too, for torch's unpickler


class _IgnoredSequence:
    def __new__(cls, *_: Any) -> Any:
        return []


# Records of settings and measurements, as training programs keep them. A name that is missing here is refused; what runs
# code elsewhere must never be added, though here it would do nothing: people may load the same file with other programs.
_PATHS = "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath"
_OBJECTS = {
    "argparse": "Namespace",
    "builtins": "bool bytes dict float frozenset int list object range slice str tuple",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "numpy": "ndarray dtype bool bool_ bytes_ str_ datetime64 timedelta64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 "
    "float16 float32 float64 longdouble complex64 complex128",
    "numpy.core.multiarray": "scalar _reconstruct",  # before numpy 2, and now
    "numpy._core.multiarray": "scalar _reconstruct",
    "numpy.dtypes": "BoolDType Int8DType Int16DType Int32DType Int64DType UInt8DType UInt16DType UInt32DType UInt64DType "
    "Float16DType Float32DType Float64DType StrDType BytesDType ObjectDType",
    "omegaconf.base": "ContainerMetadata Metadata",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.nodes": "AnyNode BooleanNode BytesNode FloatNode IntegerNode PathNode StringNode",
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,  # Python 3.13
    "pytorch_lightning.callbacks.early_stopping": "EarlyStopping",  # keys, before Lightning 1.5
    "pytorch_lightning.callbacks.model_checkpoint": "ModelCheckpoint",
    "torch.torch_version": "TorchVersion",
    "torchvision.transforms.functional": "InterpolationMode",
    "types": "SimpleNamespace",
    "typing": "Any",
    "uuid": "SafeUUID UUID",
}
_MAPPINGS = {
    "addict.addict": "Dict",
    "collections": "defaultdict",
    "easydict": "EasyDict",
    "fvcore.common.config": "CfgNode",
    "lightning.fabric.utilities.data": "AttributeDict",
    "lightning.pytorch.utilities.parsing": "AttributeDict",
    "lightning_fabric.utilities.data": "AttributeDict",
    "pytorch_lightning.utilities.parsing": "AttributeDict",
    "yacs.config": "CfgNode",
}


def _full_names(modules: dict[str, str]) -> list[str]:
    return [f"{module}.{name}" for module, names in modules.items() for name in names.split()]


_STAND_INS: list[Any] = [
    *((type(name, (_Ignored,), {}), name) for name in _full_names(_OBJECTS)),
    *((_IgnoredMapping, name) for name in _full_names(_MAPPINGS)),
    (_IgnoredSequence, "collections.deque"),
]

# torch's list of what may stand in a file belongs to the process; one reader must not take the stand-ins from another.
_reading = threading.Lock()


class _Network(NamedTuple):
    name: str  # for messages: the keys that lead to its dict, and the prefix of its names there
    plain: bool  # it is the whole file
    state: dict[Any, Any]  # its names without the prefix
    left: list[str]  # tensors in the same dict that are of no network

    @property
    def averaged(self) -> bool:
        return bool(re.search(r"(?<![a-z])ema(?![a-z])", self.name.lower()))


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Read a network's tensors from a ``.pth``/``.pt`` (legacy or zip) or ``.safetensors`` file, told apart by their first bytes.

    What a training program saved beside them is passed over: the network is looked for in the dicts of the file, under any
    prefix of its names (``module.``, ``model.``, ``backbone.``, ``_orig_mod.``, …). Of a network and its moving average
    (``state_dict_ema``, ``model_ema``, …) the average is taken. A warning says what was taken, unless the file is the plain
    state dict. Nothing under the network's prefix is left out. No code in the file is run.

    Returns:
        torchvision's names to tensors on the CPU, of the dtypes in the file.

    Raises:
        WeightsError: truncated, in another format, no network or several, or wanting to run code.
    """
    path = Path(path)
    with open(path, "rb") as file:
        head = file.read(9)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        content = _read_safetensors(path)
    else:
        content = read_pickled(path, head)
    if isinstance(content, dict) and content.keys() >= OWN_KEYS:
        content = content["model"]
    networks = _find_networks(content)
    if not networks:
        raise WeightsError(
            f"weights: {path}: expected a state dict (names to tensors) of a ResNeXt, with or without a prefix; found "
            f"{_describe(content)} without {_MARK}"
        )
    network, *others = sorted(networks, key=lambda each: not each.averaged)
    if len(networks) > 2 or (others and network.averaged == others[0].averaged):
        raise WeightsError(
            f"weights: {path}: holds {len(networks)} networks: {', '.join(each.name for each in networks)}; expected "
            "one: save the one that you want in a file of its own"
        )
    strangers = [key for key, value in network.state.items() if not isinstance(value, Tensor)]
    if strangers:
        raise WeightsError(
            f"weights: {path}: expected a state dict (names to tensors), found "
            f"{_describe(network.state[strangers[0]])} under {strangers[0]!r} of {network.name}"
        )
    if not network.plain:
        average = f", the moving average of {others[0].name}" if others else ""
        count = f"{len(network.left)} other tensor{'s' if len(network.left) > 1 else ''}"
        left = f"; left out {count} ({first_few(network.left)})" if network.left else ""
        warnings.warn(f"weights: {path}: took {network.name}{average}{left}", stacklevel=3)
    return network.state


def _find_networks(content: Any) -> list[_Network]:
    """Every network in a dict, and in the dicts inside it."""
    found = []
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    seen = set()  # a file may hold one dict under two keys, or even inside itself
    while waiting:
        path, here = waiting.pop(0)
        if not isinstance(here, dict) or id(here) in seen:
            continue
        seen.add(id(here))
        keys = {_WRAPPED.sub("", key) if isinstance(key, str) else key: key for key in here}
        if len(keys) < len(here):  # the same names with and without a wrapper are two networks
            keys = {key: key for key in here}
        marks = [
            name
            for name in keys
            if f".{name}".endswith(f".{_MARK}") and not isinstance(here[keys[name]], dict)
        ]
        prefixes = tuple(mark.removesuffix(_MARK) for mark in marks)
        tensors = [str(name) for name, key in keys.items() if isinstance(here[key], Tensor)]
        left = [name for name in tensors if not name.startswith(prefixes)]
        for mark, prefix in zip(marks, prefixes, strict=True):
            saved = keys[mark].removesuffix(_MARK) if keys[mark].endswith(_MARK) else prefix
            state = {name: here[key] for name, key in keys.items()}
            if prefix:
                state = {
                    name[len(prefix) :]: value
                    for name, value in state.items()
                    if str(name).startswith(prefix)
                }
            name = "/".join([*path, *([f"{saved}*"] if saved else [])]) or "the names without a prefix"
            found.append(_Network(name, not path and not saved, state, left))
        waiting += [((*path, str(key)), value) for key, value in here.items()]
    return found


def _describe(content: Any) -> str:
    if isinstance(content, dict) and content:
        return f"a dict of {first_few([repr(key) for key in content])}"
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

    Harmless objects beside the tensors (an ``argparse.Namespace``, numpy's numbers, paths, …) are empty stand-ins there.

    Raises:
        WeightsError: truncated, in another format, or wanting to run code.
    """
    damaged = f"weights: {path}: truncated or damaged; copy or download it again"
    if head[:4] != b"PK\x03\x04" and head[:1] != b"\x80":
        found = "an empty file" if not head else f"bytes {head[:4]!r}"
        raise WeightsError(f"weights: {path}: expected a .pth, .pt or .safetensors file, found {found}")
    advice = "Expected tensors and settings only: in the program that wrote it, save model.state_dict()"
    try:
        with _reading, torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.load.*dispatching to 'torch.jit.load'")
            warnings.filterwarnings(
                "ignore", message="Detected pickle protocol"
            )  # an error follows where it matters
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "truncated" in str(error):
            raise WeightsError(damaged) from error
        if "Unsupported operand" in str(error):
            raise WeightsError(
                f"weights: {path}: damaged, or pickled with another protocol than torch.save's own; "
                "in the program that wrote it, leave out pickle_protocol="
            ) from error
        culprit = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
        raise WeightsError(
            f"weights: {path}: refused, since loading it would run code{f' ({culprit[1]})' if culprit else ''}. {advice}"
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
        for mark, kind in (
            ("TorchScript", "a TorchScript module"),
            ("data.pkl", "a .pt2 or another archive"),
        ):
            if mark in str(error):
                raise WeightsError(
                    f"weights: {path}: is {kind}, expected a state dict; a frozen module runs with --runner"
                ) from error
        raise WeightsError(
            f"{damaged} ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error
