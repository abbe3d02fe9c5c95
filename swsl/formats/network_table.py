"""The network table: what a frozen module computes as a list of operators, for engines that read neither TorchScript nor
torch.export's programs.

Values are numbered: 0 is the batch N×3×H×W, i + 1 what operator i makes. Weights are float32, little-endian, contiguous, and lie
in entries of the archive that PyTorch reads too. An operator that our engines do not have is listed by its name alone.
"""

from __future__ import annotations

import ctypes
import os
import zlib
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from .archive import Archive, ArchiveError
from .metadata import OPERATORS, ModelError, has_script, open_frozen


def trace(folded: nn.Module, name: str) -> fx.GraphModule:
    """The operators of a model for `make_table`, with their modules as they are now.

    Args:
        folded: with BatchNorms folded into the convolutions, in evaluation mode, its weights contiguous.
        name: of the file that is to be written, for errors.

    Raises:
        ModelError: it cannot be traced.
    """
    try:
        return fx.symbolic_trace(folded)
    except Exception as error:  # whatever a forward pass raises that meets no tensor
        raise ModelError(
            f"{name}: not written, since torch.fx cannot list the model's operators ({str(error).splitlines()[0]}); its "
            "forward pass must not depend on what it computes"
        ) from error


def make_table(traced: fx.GraphModule, written: str | os.PathLike[str], name: str) -> dict[str, Any]:
    """The network table of a model that PyTorch has written to the archive ``written``.

    Raises:
        ModelError: the archive does not hold the model's weights as they are.
    """
    archive = Archive(written)
    operators: list[dict[str, Any]] = []
    numbers: dict[fx.Node, int] = {}
    logits = 0
    for node in traced.graph.nodes:
        inputs = [numbers[other] for other in node.all_input_nodes]
        module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        if node.op == "placeholder":
            numbers[node] = 0
        elif node.op == "output":
            logits = inputs[0]
        elif isinstance(module, (nn.Identity, nn.Dropout)):
            numbers[node] = inputs[0]
        else:
            kind, attributes = _of_module(module) if module else (_of_call(node), {})
            if kind == "add":  # x + x too
                inputs = [numbers[value] for value in node.args]
            for part in ("weight", "bias") if kind in ("conv2d", "linear") else ():
                values = getattr(module, part)
                attributes[part] = (
                    None if values is None else _find(values, archive, f"{node.target}.{part}", name)
                )
            operators.append({"operator": kind, "inputs": inputs, **attributes})
            numbers[node] = len(operators)
    # Where there is no linear layer, none of our engines runs the table.
    last = next((item for item in reversed(operators) if item["operator"] == "linear"), None)
    return {"operators": operators, "logits": logits, "features": last["inputs"][0] if last else logits}


def unknown_operators(table: dict[str, Any]) -> list[str]:
    """Those that our engines do not have."""
    return [item["operator"] for item in table["operators"] if item["operator"] not in OPERATORS]


class NetworkTable:
    """The network table of a frozen module, read from the archive and run in PyTorch: the readable twin of the planned engine. It
    needs no TorchScript, and nothing in the file can make it run other code.

    Args:
        path: the file.
        device: to compute on.

    Raises:
        ModelError: the file cannot be read or is damaged, or the table has an operator that is not in `OPERATORS`.
    """

    def __init__(self, path: str | os.PathLike[str], device: str | torch.device = "cpu") -> None:
        self._name = os.fsdecode(path)
        metadata, archive = open_frozen(path)
        self._table = table = metadata["network"]
        self._operators = table["operators"]
        if unknown := unknown_operators(table):
            only = "only TorchScript runs" if has_script(archive) else "no engine of swsl runs"
            raise ModelError(f"{self._name}: {only} its operator {unknown[0]}")
        self._last_use = {
            value: place for place, item in enumerate(self._operators) for value in item["inputs"]
        }
        self._last_use |= dict.fromkeys((table["logits"], table["features"]), len(self._operators))
        self._weights = []
        for place, item in enumerate(self._operators):
            try:
                held = [_floats(item.get(part), archive) for part in ("weight", "bias")]
            except ArchiveError as error:
                raise self._failure(place, error) from error
            self._weights.append([None if values is None else values.to(device) for values in held])

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Of a float32 batch N×3×H×W on the device: logits N×classes and features N×D.

        Raises:
            ModelError: an operator cannot be computed of what reaches it.
        """
        values = self._run({0: batch}, len(self._operators))
        return values[self._table["logits"]], values[self._table["features"]]

    def forward_features(self, batch: Tensor) -> Tensor:
        """The last map N×C×h×w before the classifier and its pool, as `ResNeXt.forward_features`.

        Raises:
            ModelError: there is no such map, or an operator cannot be computed of what reaches it.
        """
        last = self._last_map()
        return self._run({0: batch}, last)[last]

    def forward_head(self, features: Tensor) -> Tensor:
        """Logits N×classes of such maps, differentiable. Raises ModelError as `forward_features` does."""
        values = self._run({self._last_map(): features}, len(self._operators))
        return values[self._table["logits"]]

    def _last_map(self) -> int:
        """The number of the value that the pool and the classifier alone are computed of."""
        operators = self._operators
        value = next((item["inputs"][0] for item in operators if item["operator"] == "flatten"), 0)
        while value and "pool" in operators[value - 1]["operator"]:
            value = operators[value - 1]["inputs"][0]
        if not value or any(number < value for item in operators[value:] for number in item["inputs"]):
            raise ModelError(f"{self._name}: has no last map, one that only a pool and a classifier follow")
        return value

    def _run(self, values: dict[int, Tensor], end: int) -> dict[int, Tensor]:
        """The operators after the newest of ``values`` up to number ``end``. What no later one needs is dropped."""
        for place in range(max(values), end):
            item = self._operators[place]
            inputs = [values[value] for value in item["inputs"]]
            try:
                values[place + 1] = _compute(item, inputs, *self._weights[place])
            except RuntimeError as error:
                raise self._failure(place, error) from error
            for value in item["inputs"]:
                if self._last_use[value] == place:
                    values.pop(value, None)
        return values

    def _failure(self, place: int, error: Exception) -> ModelError:
        return ModelError(
            f"{self._name}: its operator {place + 1}, {self._operators[place]['operator']}, cannot be computed: "
            f"{str(error).splitlines()[0]}; export it again"
        )


def run_table(path: str | os.PathLike[str], batch: Tensor) -> tuple[Tensor, Tensor]:
    """What `NetworkTable` makes of one batch."""
    return NetworkTable(path)(batch)


def check_classifier(path: str | os.PathLike[str]) -> None:
    """That the classifier, the last of the operators, is of the sizes that the golden check states: they decide how large an error
    of the logits may be.

    Raises:
        ModelError: it is not, or the file cannot be read or is damaged.
    """
    metadata, archive = open_frozen(path)
    golden, last = metadata["golden"], metadata["network"]["operators"][-1]
    if last["operator"] != "linear" or last["weight"]["shape"][0] != len(golden["biases"]):
        return
    try:
        weight, bias = (_floats(last[part], archive) for part in ("weight", "bias"))
    except ArchiveError as error:
        raise ModelError(
            f"{os.fsdecode(path)}: damaged: {error}; get it again, or export it again"
        ) from error
    assert weight is not None
    norms = weight.double().norm(dim=1)
    found = torch.stack([norms, torch.zeros_like(norms) if bias is None else bias.double().abs()])
    stated = torch.tensor([golden["weight_norms"], golden["biases"]], dtype=torch.float64)
    differ = ((found - stated).abs() > 1e-3 * found).any(dim=0)
    if differ.any():
        raise ModelError(
            f"{os.fsdecode(path)}: swsl.json inside it: golden.weight_norms and golden.biases of class "
            f"{int(differ.nonzero()[0])} are not those of its classifier; export it again"
        )


def _compute(
    item: dict[str, Any], inputs: list[Tensor], weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    x = inputs[0]
    window: dict[str, Any] = {name: item[name] for name in OPERATORS[item["operator"]]}
    match item["operator"]:
        case "conv2d":
            assert weight is not None
            return functional.conv2d(x, weight, bias, **window, groups=item["groups"])
        case "linear":
            assert weight is not None
            return functional.linear(x, weight, bias)
        case "relu":
            return x.relu()
        case "add":
            return x + inputs[1]
        case "max_pool2d":
            return functional.max_pool2d(x, **window)
        case "avg_pool2d":
            return functional.avg_pool2d(x, **window)
        case "avg_pool2d_ceil":
            return functional.avg_pool2d(x, **window, ceil_mode=True)
        case "adaptive_avg_pool2d":
            return functional.adaptive_avg_pool2d(x, **window)
        case _:
            return x.flatten(1)


def _floats(weight: dict[str, Any] | None, archive: Archive) -> Tensor | None:
    if weight is None:
        return None
    data = archive.read(weight["entry"])
    aligned = archive.entries[weight["entry"]].offset % 4 == 0  # as PyTorch writes them
    return torch.frombuffer(data if aligned else bytearray(data), dtype=torch.float32).view(weight["shape"])


def _find(values: Tensor, archive: Archive, parameter: str, name: str) -> dict[str, Any]:
    """Where the archive holds these very values."""
    values = values.detach()
    data = (ctypes.c_ubyte * values.nbytes).from_address(values.data_ptr())
    crc = zlib.crc32(data)
    for entry, found in archive.entries.items():
        if found.stored and (found.size, found.crc) == (values.nbytes, crc):
            stored = torch.frombuffer(archive.read(entry), dtype=torch.uint8)
            if torch.equal(stored, values.flatten().view(torch.uint8)):
                return {"entry": entry, "shape": list(values.shape), "crc32": crc}
    raise ModelError(
        f"{name}: not written, since PyTorch has not stored {parameter} as it is; torch {torch.__version__} writes this "
        "model in a way that swsl does not know: try another release"
    )


def _of_module(module: nn.Module) -> tuple[str, dict[str, Any]]:
    """The operator of a layer and its attributes, without its weights."""
    kind, name = type(module), type(module).__name__.lower()
    if kind is nn.Conv2d:
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            return f"conv2d with padding of another kind, {module.padding} {module.padding_mode}", {}
        return "conv2d", {**_pairs(module, "conv2d"), "groups": module.groups}
    if kind in (nn.Linear, nn.ReLU):
        return name, {}
    if kind in (nn.MaxPool2d, nn.AvgPool2d):
        name = "max_pool2d" if kind is nn.MaxPool2d else "avg_pool2d"
        pairs = _pairs(module, name)
        unknown = {
            "ceil_mode": kind is nn.MaxPool2d and module.ceil_mode,
            "dilation": kind is nn.MaxPool2d and _pair(module.dilation) != [1, 1],
            "return_indices": kind is nn.MaxPool2d and module.return_indices,
            "padding that is not counted": kind is nn.AvgPool2d
            and not module.count_include_pad
            and pairs["padding"] != [0, 0],
            "divisor_override": kind is nn.AvgPool2d and module.divisor_override,
        }
        why = ", ".join(what for what, there in unknown.items() if there)
        name += "_ceil" if module.ceil_mode and not why else ""
        return (f"{name} with {why}", {}) if why else (name, pairs)
    if kind is nn.AdaptiveAvgPool2d and _pair(module.output_size) == [1, 1]:
        return "adaptive_avg_pool2d", {"output_size": [1, 1]}
    if kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
        return name, {}
    return f"{name} of another kind" if name in OPERATORS else name, {}


def _of_call(node: fx.Node) -> str:
    """The operator of a function or method that a forward pass calls."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    tensors = [isinstance(value, fx.Node) for value in node.args]
    if node.op != "get_attr" and not node.kwargs:
        if name in ("add", "add_", "iadd") and tensors == [True, True]:
            return "add"
        if name in ("relu", "relu_") and tensors == [True]:
            return "relu"
        if name == "flatten" and tensors[0] and node.args[1:] in ((1,), (1, -1)):
            return "flatten"
    return f"{name}, which is no layer"


def _pairs(module: nn.Module, name: str) -> dict[str, list[int]]:
    return {attribute: _pair(getattr(module, attribute)) for attribute in OPERATORS[name]}


def _pair(value: Any) -> list[int]:
    return list(value) if isinstance(value, (tuple, list)) else [value, value]
