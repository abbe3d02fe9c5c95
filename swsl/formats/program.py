"""Networks through torch.export: any one as plain layers, whatever its own code looks like, and a frozen module as a `.pt2`."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .golden import TOLERANCES, classifier_sizes, golden_input, logits_error, logits_scale
from .metadata import OPERATORS, ModelError

_UNCHANGED = {"dropout", "dropout_", "feature_dropout", "contiguous", "detach", "alias"}  # in evaluation mode


class Layers(nn.Module):
    """A classifier of layers that the network table knows, with those methods of `ResNeXt` that deployment needs.

    Args:
        features: images N×3×H×W to pooled features N×D.
        fc: the classifier, D to ``num_classes``.
    """

    def __init__(self, features: fx.GraphModule, fc: nn.Linear) -> None:
        super().__init__()
        self.features, self.fc = features, fc
        self.num_classes = fc.out_features

    def forward_features(self, x: Tensor) -> Tensor:
        return self.features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class Answers(nn.Module):
    """Logits and embedding of one pass."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.model.forward_head(self.model.forward_features(x), pre_logits=True)
        return self.model.fc(embedding), embedding


def takes_any_size(size: tuple[int, int]) -> bool:
    """Whether the program of a network for inputs of this height and width takes others too. torch.export tells sides of more than
    one from those of one: the maps of an input of 32 pixels end in the latter."""
    return min(size) > 32


def answers(folded: nn.Module, size: tuple[int, int], name: str) -> torch.export.ExportedProgram:
    """The program of a `.pt2`: float32 N×3×H×W, of any N, to logits N×classes and embedding N×D. H and W are above 32, any if
    `takes_any_size`, else those of ``size``.

    Args:
        folded: a `ResNeXt` or `Layers` without BatchNorm, in evaluation mode.
        size: height and width of the input, pixels.
        name: of the file that is to be written, for errors.

    Raises:
        ModelError: torch.export cannot list what it does.
    """
    return _export(Answers(folded).eval(), name, None if takes_any_size(size) else size)


def save(program: torch.export.ExportedProgram, path: str | os.PathLike[str], extra: dict[str, str]) -> None:
    """Write a `.pt2`, with ``extra`` files by their names."""
    torch.export.save(program, path, extra_files=extra)


def as_layers(model: nn.Module, size: tuple[int, int], name: str) -> Layers:
    """A classifier as plain layers without BatchNorm, from the operators that torch.export lists; checked against the model.

    Args:
        model: float32, on the CPU, in evaluation mode; images N×3×H×W of any size to logits.
        size: height and width of the input to check with, pixels.
        name: of the file that is to be written, for errors.

    Raises:
        ModelError: it cannot be listed, has an operator that no layer here stands for, or ends in something else than a linear
            layer on pooled features.
    """
    layers = _Reader(_export(model, name), name).layers
    height, width = size
    for shape in ((1, 3, height, width), (2, 3, height + 32, width)):
        batch = golden_input(shape)
        scale, answer = logits_scale(*classifier_sizes(layers), layers.features(batch)), model(batch)
        if not isinstance(answer, Tensor):
            raise ModelError(
                f"{name}: not written, since the model returns its logits in a {type(answer).__name__}; wrap it in a module that "
                "returns the tensor alone"
            )
        found = logits_error(layers(batch), answer, scale)
        if not found <= TOLERANCES["float32"]:
            raise ModelError(
                f"{name}: not written, since the layers that torch.export lists give answers to an input of {shape} that are "
                f"{found:.1e} from the model's, expected at most {TOLERANCES['float32']:.0e}: it does more than they say"
            )
    return layers


def _export(model: nn.Module, name: str, size: tuple[int, int] | None = None) -> torch.export.ExportedProgram:
    vary = dict.fromkeys((0,) if size else (0, 2, 3), torch.export.Dim.DYNAMIC)
    example = torch.zeros(2, 3, *(size or (64, 64)))  # which the file keeps
    try:
        return torch.export.export(model, (example,), dynamic_shapes=(vary,))
    except Exception as error:  # whatever a forward pass raises that meets no real tensor
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"{name}: not written, since torch.export cannot list the model's operators for batches N×3×H×W of any N, H and W "
            f"({reason}); its forward pass must not depend on what it computes"
        ) from error


class _Reader:
    """Goes through the operators of ATen that a program lists, in their order."""

    def __init__(self, program: torch.export.ExportedProgram, name: str) -> None:
        self.name = name
        signature = program.graph_signature
        held = {**program.constants, **program.state_dict}
        stored = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self.graph = fx.Graph()
        self.modules: dict[str, nn.Module] = {}
        self.tensors: dict[fx.Node, tuple[str, Tensor]] = {}  # parameters and buffers, with their names
        self.made: dict[fx.Node, fx.Node] = {}  # what stands for a value of the program in the new graph
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in stored:
                self.tensors[node] = stored[node.name], held[stored[node.name]].detach()
            elif node.op == "placeholder":
                self.made[node] = self.graph.placeholder("x")
            elif node.op == "output":
                self.layers = self._finish(node)
            elif isinstance(node.meta.get("val"), Tensor):  # sizes are whatever the batch says
                self.made[node] = self._read(node)

    def _finish(self, output: fx.Node) -> Layers:
        last = self.made.get(output.args[0][0]) if len(output.args[0]) == 1 else None  # type: ignore[union-attr, index, arg-type]
        fc = self.modules.get(str(last.target)) if last else None
        if last is None or not isinstance(fc, nn.Linear) or last.users:
            raise ModelError(
                f"{self.name}: not written, since the model does not end in one linear layer, the classifier, whose logits are all "
                "that it returns; give it one"
            )
        del self.modules[str(last.target)]
        features = last.args[0]
        self.graph.erase_node(last)
        self.graph.output(features)
        return Layers(fx.GraphModule(self.modules, self.graph), fc).eval()

    def _read(self, node: fx.Node) -> fx.Node:
        """What computes the value of a node in the new graph."""
        target: Any = node.target
        schema = getattr(target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.name.startswith("aten::"):
            raise self._unknown(node)
        given: dict[str, Any] = {argument.name: argument.default_value for argument in schema.arguments}
        given |= dict(zip(given, node.args, strict=False)) | node.kwargs
        operator = schema.name.removeprefix("aten::")
        read = getattr(self, f"_{operator.removesuffix('_')}", None)
        first = next(iter(given.values()))
        known = isinstance(first, fx.Node) and first in self.made
        if known and operator in _UNCHANGED and not given.get("train"):
            return self.made[first]
        if read is None or not known:
            raise self._unknown(node)
        made: fx.Node = read(
            node, **{"x" if name in ("self", "input") else name: value for name, value in given.items()}
        )
        if operator.endswith("_"):  # whoever reads the value that it changed gets the new one
            before = self.made[first]
            self.made |= {value: made for value, found in self.made.items() if found is before}
        return made

    def _unknown(self, node: fx.Node, why: str = "") -> ModelError:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        place = f" in its {stack[-1][0]}" if stack and stack[-1][0] else ""
        return ModelError(
            f"{self.name}: not written, since the model computes {node.target}{why}{place}, which swsl's engines do not have; they "
            f"have {', '.join(OPERATORS)}, and batch_norm after conv2d"
        )

    def _module(self, name: str, module: nn.Module, x: fx.Node) -> fx.Node:
        while name in self.modules:
            name += "_again"
        self.modules[name] = module
        return self.graph.call_module(name, (self.made[x],))

    def _layer(self, node: fx.Node, module: Any, weight: Any, bias: Any, x: fx.Node) -> fx.Node:
        if weight not in self.tensors or (bias is not None and bias not in self.tensors):
            raise self._unknown(node, " with weights that are computed")
        name, values = self.tensors[weight]
        _hold(module, values, None if bias is None else self.tensors[bias][1])
        return self._module(name.removesuffix(".weight"), module, x)

    def _conv2d(
        self,
        node: fx.Node,
        x: Any,
        weight: Any,
        bias: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
    ) -> fx.Node:
        if isinstance(padding, str):
            raise self._unknown(node)
        out_channels, in_channels, *kernel = weight.meta["val"].shape
        module = nn.Conv2d(
            in_channels * groups, out_channels, tuple(kernel), _pair(stride), _pair(padding), _pair(dilation), groups,
            bias=False, device="meta",
        )  # fmt: skip
        return self._layer(node, module, weight, bias, x)

    def _batch_norm(self, node: fx.Node, x: fx.Node, training: bool, eps: float, **rest: Any) -> fx.Node:
        made = self.made[x]
        convolution = self.modules.get(str(made.target))
        if training or not isinstance(convolution, nn.Conv2d) or len(x.users) != 1:
            raise self._unknown(node, " that does not follow a convolution")
        mean, variance, weight, bias = (
            rest[part] and self.tensors[rest[part]][1]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        _hold(
            convolution,
            *fuse_conv_bn_weights(convolution.weight, convolution.bias, mean, variance, eps, weight, bias),
        )
        return made

    def _linear(self, node: fx.Node, x: fx.Node, weight: Any, bias: Any) -> fx.Node:
        rows, columns = weight.meta["val"].shape
        module = nn.Linear(columns, rows, bias=False, device="meta")
        return self._layer(node, module, weight, bias, x)

    def _relu(self, node: fx.Node, x: fx.Node) -> fx.Node:
        in_place = str(node.target).startswith("aten.relu_")
        return self.graph.call_function(torch.relu_ if in_place else torch.relu, (self.made[x],))

    def _add(self, node: fx.Node, x: fx.Node, other: Any, alpha: Any) -> fx.Node:
        if other not in self.made or alpha != 1:
            raise self._unknown(node, " of other than two values")
        terms = self.made[x], self.made[other]
        if str(node.target).startswith("aten.add_"):
            return self.graph.call_method("add_", terms)
        return self.graph.call_function(torch.add, terms)

    def _max_pool2d(
        self,
        node: fx.Node,
        x: fx.Node,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        ceil_mode: bool,
    ) -> fx.Node:
        pool = nn.MaxPool2d(
            _pair(kernel_size),
            _pair(stride or kernel_size),
            _pair(padding),
            _pair(dilation),
            False,
            ceil_mode,
        )
        return self._module(node.name, pool, x)

    def _avg_pool2d(
        self, node: fx.Node, x: fx.Node, kernel_size: Any, stride: Any, padding: Any, **rest: Any
    ) -> fx.Node:
        pool = nn.AvgPool2d(_pair(kernel_size), _pair(stride or kernel_size), _pair(padding), **rest)
        return self._module(node.name, pool, x)

    def _adaptive_avg_pool2d(self, node: fx.Node, x: fx.Node, output_size: Any) -> fx.Node:
        if _pair(output_size) != (1, 1):
            raise self._unknown(node, f" to {_pair(output_size)}")
        return self._module(node.name, nn.AdaptiveAvgPool2d((1, 1)), x)

    def _mean(
        self, node: fx.Node, x: fx.Node, dim: Any = None, keepdim: bool = False, dtype: Any = None
    ) -> fx.Node:
        rank = x.meta["val"].ndim
        if rank != 4 or dtype is not None or sorted(place % rank for place in dim or ()) != [2, 3]:
            raise self._unknown(node, " of other dimensions than height and width")
        pooled = self._module(node.name, nn.AdaptiveAvgPool2d((1, 1)), x)
        return pooled if keepdim else self.graph.call_function(torch.flatten, (pooled, 1))

    def _flatten(self, node: fx.Node, x: fx.Node, **_: Any) -> fx.Node:
        before, after = x.meta["val"], node.meta["val"]
        if after.ndim != 2 or str(before.shape[0]) != str(after.shape[0]):
            raise self._unknown(node, f" to {after.ndim} dimensions")
        return self.graph.call_function(torch.flatten, (self.made[x], 1))

    _view = _reshape = _flatten


def _hold(module: Any, weight: Tensor, bias: Tensor | None) -> None:
    for part, values in (("weight", weight), ("bias", bias)):
        if values is not None:
            setattr(module, part, nn.Parameter(as_stored(values), requires_grad=False))


def as_stored(values: Tensor) -> Tensor:
    """A copy as an archive has it: contiguous, and without -0, since TorchScript stores tensors that compare as equal once."""
    return (values.detach() + 0.0).clone(memory_format=torch.contiguous_format)


def _pair(value: Any) -> tuple[int, int]:
    sides = list(value) if isinstance(value, (tuple, list)) else [value]
    return (sides * 2)[0], (sides * 2)[1]
