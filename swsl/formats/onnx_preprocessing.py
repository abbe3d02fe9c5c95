"""Preprocessing as an ONNX graph: uint8 RGB images N×H×W×3 to the batch N×3×h×w that a model takes.

ONNX's Resize means other filters in other runtimes. Pillow's is written out instead: how much each row and each column of the
source has of each one of the crop makes two matrices, and two products with them are the resize and the crop. The filter, the
order of the passes and the 8 bits between them are Pillow's. What differs is rounding: Pillow adds integers, the graph floats. The
triangle of the bilinear filter has no negative weights, so that this moves no pixel by more than one step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..preprocess import PreprocessSpec, preprocess_batch

MOST_STEPS = 1
"""Of 1/255, that a pixel may be from Pillow's."""

# Places are counted from the middle of the image, in halves of a pixel: they stay small where the crop is, and so their products
# are exact in float32, also those of long sides. A runtime may have no int64 or float64.
_AXIS = """
  {axis}_lost = Sub({axis}_resized, {axis}_crop)
  {axis}_half = Div({axis}_lost, two)
  {axis}_odd = Mod({axis}_half, two)
  {axis}_even = Add({axis}_lost, {axis}_odd)
  {axis}_start = Div({axis}_even, two)
  {axis}_range = Range(zero, {axis}_crop, one)
  {axis}_kept = Add({axis}_range, {axis}_start)
  {axis}_kept_twice = Mul({axis}_kept, two)
  {axis}_kept_centres = Add({axis}_kept_twice, one)
  {axis}_kept_places = Sub({axis}_kept_centres, {axis}_resized)
  {axis}_inputs = Range(zero, {axis}_source, one)
  {axis}_inputs_twice = Mul({axis}_inputs, two)
  {axis}_input_centres = Add({axis}_inputs_twice, one)
  {axis}_input_places = Sub({axis}_input_centres, {axis}_source)
  {axis}_longer = Max({axis}_source, {axis}_resized)
  {axis}_reach = Mul({axis}_longer, two)
  {axis}_from_float = Cast<to = 1>({axis}_input_places)
  {axis}_to_float = Cast<to = 1>({axis}_kept_places)
  {axis}_source_float = Cast<to = 1>({axis}_source)
  {axis}_resized_float = Cast<to = 1>({axis}_resized)
  {axis}_reach_float = Cast<to = 1>({axis}_reach)
  {axis}_from = Mul({axis}_from_float, {axis}_resized_float)
  {axis}_to = Mul({axis}_to_float, {axis}_source_float)
  {axis}_to_column = Unsqueeze({axis}_to, last)
  {axis}_apart = Sub({axis}_from, {axis}_to_column)
  {axis}_ratio = Div({axis}_apart, {axis}_reach_float)
  {axis}_distance = Abs({axis}_ratio)
  {axis}_triangle = Sub(whole, {axis}_distance)
  {axis}_filter = Relu({axis}_triangle)
  {axis}_sum = ReduceSum<keepdims = 1>({axis}_filter, last)
  {axis}_weights = Div({axis}_filter, {axis}_sum)
"""

_PASS = """
    {out}_sums = MatMul({left}, {right})
    {out}_up = Add({out}_sums, half)
    {out}_floor = Floor({out}_up)
    {out} = Clip({out}_floor, nothing, most)
"""

_GRAPH = """<ir_version: {ir_version}, opset_import: ["": {opset}]>
preprocessing (uint8[N, H, W, 3] images) => (float[N, 3, {height}, {width}] batch)
<
  int64 zero = {{0}}, int64 one = {{1}}, int64 two = {{2}}, int64[1] last = {{1}},
  int64 rows_crop = {{{height}}}, int64 columns_crop = {{{width}}}, int64 shorter = {{{shorter}}},
  float nothing = {{0}}, float half = {{0.5}}, float whole = {{1}}, float most = {{255}},
  float[1, 3, 1, 1] mean = {{{mean}}}, float[1, 3, 1, 1] std = {{{std}}}
>
{{
  shape = Shape(images)
  rows_source = Gather(shape, one)
  columns_source = Gather(shape, two)
  side = Min(rows_source, columns_source)
  rows_scaled = Mul(rows_source, shorter)
  rows_resized = Div(rows_scaled, side)
  columns_scaled = Mul(columns_source, shorter)
  columns_resized = Div(columns_scaled, side)
{rows}{columns}
  columns_turned = Transpose<perm = [1, 0]>(columns_weights)
  planes = Transpose<perm = [0, 3, 1, 2]>(images)
  source = Cast<to = 1>(planes)
  rows_fewer = Sub(rows_source, rows_resized)
  columns_fewer = Sub(columns_source, columns_resized)
  columns_fewer_twice = Mul(columns_fewer, two)
  least = Max(columns_fewer_twice, zero)
  rows_first = Greater(rows_fewer, least)
  pixels = If (rows_first) <
    then_branch = vertical_first () => (float[N, 3, {height}, {width}] down_across) {{{down}{down_across}}},
    else_branch = horizontal_first () => (float[N, 3, {height}, {width}] across_down) {{{across}{across_down}}}
  >
  scaled = Div(pixels, most)
  centred = Sub(scaled, mean)
  batch = Div(centred, std)
}}"""


def refuse_other_specs(spec: PreprocessSpec) -> None:
    """Raises:
    ValueError: not the bilinear filter, or not a square input.
    """
    height, width = spec.input_size
    if spec.interpolation != "bilinear" or height != width:
        raise ValueError(
            f"with preprocessing: expected bilinear interpolation and a square input, got {spec.interpolation} and "
            f"{height}×{width}; export it without, and preprocess as its metadata says"
        )


def preprocessing_graph(spec: PreprocessSpec, ir_version: int, opset: int) -> Any:
    """The graph as an onnx.ModelProto: ``images`` uint8 N×H×W×3 to ``batch`` float32 N×3×h×w."""
    import onnx.parser

    height, width = spec.input_size
    text = _GRAPH.format(
        ir_version=ir_version, opset=opset, height=height, width=width,
        shorter=math.floor(height / spec.crop_pct),
        mean=", ".join(map(repr, spec.mean)), std=", ".join(map(repr, spec.std)),
        rows=_AXIS.format(axis="rows"), columns=_AXIS.format(axis="columns"),
        down=_PASS.format(out="down", left="rows_weights", right="source"),
        down_across=_PASS.format(out="down_across", left="down", right="columns_turned"),
        across=_PASS.format(out="across", left="source", right="columns_turned"),
        across_down=_PASS.format(out="across_down", left="rows_weights", right="across"),
    )  # fmt: skip
    graph = onnx.parser.parse_model(text)
    onnx.checker.check_model(graph, full_check=True)
    return graph


def sample_images() -> Iterator[Tensor]:
    """Batches uint8 N×H×W×3, of noise, whose pixels a wrong filter moves furthest: smaller and larger than inputs usually are, and of
    either order of passes."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((1, 375, 500), (1, 500, 375), (2, 91, 130), (1, 1000, 613), (1, 20, 12_000), (1, 333, 333)):
        yield torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)


def difference(batches: Sequence[tuple[Tensor, Tensor]], spec: PreprocessSpec) -> tuple[float, float]:
    """The largest and the mean difference of pixels, in steps of 1/255, between `swsl.preprocess_batch` of images uint8 N×H×W×3 and what
    a graph made of them, float32 N×3×h×w."""
    from PIL import Image

    steps = []
    for images, batch in batches:
        exact = preprocess_batch([Image.fromarray(image.numpy()) for image in images], spec)
        apart = (batch - exact).abs() * torch.tensor(spec.std)[:, None, None] * 255
        steps.append(apart.round().flatten())  # both are of 8 bits
    together = torch.cat(steps)
    return together.max().item(), together.mean().item()
