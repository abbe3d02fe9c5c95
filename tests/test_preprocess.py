"""Preprocessing equals timm's and torchvision's, float for float; decoding errors say what is wrong."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import pytest
import timm
import torch
from conftest import Server
from image_files import jpeg_of_scans, segment
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision import transforms

import swsl
from swsl.deploy.eager import EagerRunner
from swsl.image import load_image
from swsl.preprocess import PreprocessSpec, preprocess, preprocess_batch

SIZES = [  # width, height
    (1, 1), (1, 700), (500, 3), (3, 2000), (256, 256), (224, 224), (256, 300), (300, 256), (255, 257), (257, 255),
    (500, 392), (392, 500), (641, 427), (640, 480), (33, 47), (1546, 1213), (225, 2000), (7, 11),
]  # fmt: skip

SPECS = [
    PreprocessSpec(),
    PreprocessSpec((288, 288), 1.0, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    PreprocessSpec((224, 224), 0.9, "bicubic"),
    PreprocessSpec((160, 256), 0.875),
    PreprocessSpec((257, 97), 0.95, "bicubic"),
    PreprocessSpec((32, 32), 1.0),
]


def noise(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    width, height = size
    channels = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, size, random.Random(seed).randbytes(width * height * channels))


def timm_transform(spec: PreprocessSpec) -> object:
    return create_transform(
        input_size=(3, *spec.input_size), crop_pct=spec.crop_pct, interpolation=spec.interpolation, mean=spec.mean, std=spec.std
    )  # fmt: skip


def test_the_default_spec_is_what_timm_resolves_for_these_models() -> None:
    model = timm.create_model("resnext50_32x4d.fb_swsl_ig1b_ft_in1k", pretrained=False)
    transform = create_transform(**resolve_data_config({}, model=model))
    for variant in swsl.VARIANTS.values():
        image = noise((500, 392))
        assert torch.equal(preprocess(image, variant.preprocess), transform(image))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    "spec", SPECS, ids=lambda spec: f"{spec.input_size}-{spec.crop_pct}-{spec.interpolation}"
)
def test_equals_timm(size: tuple[int, int], spec: PreprocessSpec) -> None:
    image = noise(size)
    tensor = preprocess(image, spec)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert torch.equal(tensor, timm_transform(spec)(image))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 5000), (5000, 3), (4000, 3000)], ids=str)
def test_equals_timm_on_extreme_sizes(size: tuple[int, int]) -> None:
    image = noise(size)
    assert torch.equal(preprocess(image), timm_transform(PreprocessSpec())(image))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_torchvision(size: tuple[int, int]) -> None:
    image, spec = noise(size), PreprocessSpec()
    pipeline = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
    )
    assert torch.equal(preprocess(image, spec), pipeline(image))


def with_transparency(image: Image.Image) -> Image.Image:
    image.info["transparency"] = 3
    return image


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16", "YCbCr", "HSV", "I", "F"]
)
def test_modes(mode: str) -> None:
    if mode == "1":
        image = noise((300, 280), "L").convert("1")
    elif mode == "P":
        image = with_transparency(noise((300, 280)).quantize(64))
    elif mode == "PA":
        image = noise((300, 280)).quantize(64).convert("PA")
    elif mode in ("I", "F"):
        image = noise((300, 280), "L").convert(mode)
    elif mode == "I;16":
        image = Image.frombytes(mode, (300, 280), random.Random(0).randbytes(2 * 300 * 280))
    else:
        image = noise((300, 280), mode)
    assert image.mode == mode
    assert torch.equal(preprocess(image), timm_transform(PreprocessSpec())(image.convert("RGB")))


def test_every_kind_of_source_gives_the_same(tmp_path: Path, server: Server) -> None:
    image = noise((321, 243))
    image.save(tmp_path / "image.png")
    data = (tmp_path / "image.png").read_bytes()
    server.files["/image.png"] = data
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(243, 321, 3)
    padded = torch.zeros(250, 330, 3, dtype=torch.uint8)
    padded[3:246, 5:326] = pixels
    expected = preprocess(image)
    path = tmp_path / "image.png"
    for source in (path, str(path), data, bytearray(data), memoryview(data), pixels, pixels.numpy(), padded[3:246, 5:326],
                   f"{server.url}/image.png"):  # fmt: skip
        assert torch.equal(preprocess(source), expected)
    batch = preprocess_batch([image, path])
    assert batch.shape == (2, 3, 224, 224)
    assert torch.equal(batch[1], expected)
    assert preprocess_batch([]).shape == (0, 3, 224, 224)


def test_exif_orientation_is_applied_on_request_only() -> None:
    image = noise((60, 40))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = io.BytesIO()
        image.save(file, "PNG", exif=exif)
        turned = swsl.load_image(file.getvalue(), exif_orientation=True)
        assert turned.size == ((60, 40) if orientation < 5 else (40, 60))
        assert torch.equal(preprocess(file.getvalue()), preprocess(image))
        assert torch.equal(preprocess(file.getvalue(), exif_orientation=True), preprocess(turned))
        if orientation == 6:  # the camera lay on its side: the first column comes on top
            assert turned.getpixel((39, 0)) == image.getpixel((0, 0))


def test_unusable_images_are_named(tmp_path: Path, server: Server) -> None:
    noise((64, 64)).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.jpg").write_text("not a photograph")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for source, message in (
        (tmp_path / "nowhere.jpg", "nowhere.jpg: cannot be opened: No such file or directory"),
        (tmp_path, "is a directory; expected an image file"),
        (tmp_path / "cut.jpg", "cut.jpg: .*truncated"),
        (tmp_path / "text.jpg", "text.jpg: not an image in a format that Pillow reads"),
        (tmp_path / "empty.jpg", "empty.jpg: is empty; expected an image file"),
        (b"abc", "image bytes: not an image"),
        (torch.zeros(3, 4, 4), r"expected uint8 height × width × 3, got torch.float32 \(3, 4, 4\)"),
        (torch.zeros(0, 4, 3, dtype=torch.uint8), "expected uint8 height × width × 3, got"),
        (f"{server.url}/nothing.jpg", "nothing.jpg: cannot be fetched: Not Found"),
    ):
        with pytest.raises(swsl.ImageError, match=message):
            preprocess(source)
    with pytest.raises(TypeError, match="expected a path, a URL, bytes, a Pillow image .*got int"):
        preprocess(3)
    with pytest.raises(swsl.ImageError, match="the Pillow image: 4 × 0 pixels .*; expected at least 1"):
        preprocess(Image.new("RGB", (0, 4)))


def test_one_image_is_not_a_list_of_images(photo: Path) -> None:
    image = Image.open(photo)
    for one in (photo, str(photo), photo.read_bytes(), image, torch.zeros(4, 4, 3, dtype=torch.uint8)):
        with pytest.raises(
            TypeError, match=r"images: expected a list of images, got one .*; write \[image\]"
        ):
            preprocess_batch(one)
    with pytest.raises(TypeError, match="images: expected a list of images, got int"):
        preprocess_batch(3)


def test_no_permission_is_said(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:  # chmod would not keep root from reading
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(swsl.ImageError, match="chelsea.jpg: cannot be opened: Permission denied"):
        preprocess(photo)


@pytest.mark.filterwarnings("error")
def test_images_of_too_many_pixels_are_refused(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    Image.new("L", (310, 300)).save(file, "PNG")
    message = "image bytes: 300 × 310 pixels .*at most 92999; raise max_pixels if you trust it"
    with pytest.raises(swsl.ImageError, match=message):
        preprocess(file.getvalue(), max_pixels=92999)
    with pytest.raises(swsl.ImageError, match="at most 92999"):
        EagerRunner(
            swsl.ResNeXt((1, 1, 1, 1), groups=1, width_per_group=1), device="cpu", max_pixels=92999
        ).preprocess([file.getvalue()])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80000)  # Pillow would warn
    assert preprocess(file.getvalue(), max_pixels=93000).shape == (3, 224, 224)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40000)
    with pytest.raises(swsl.ImageError, match=r"raise PIL\.Image\.MAX_IMAGE_PIXELS and max_pixels"):
        preprocess(file.getvalue())


def test_jpegs_of_hundreds_of_scans_are_refused() -> None:
    thumbnail = segment(0xE1, b"".join(b"\xff\xda" for _ in range(200)))  # no scans of the image's own
    most = jpeg_of_scans(100)
    assert load_image(most[:2] + thumbnail + most[2:]).size == (48, 32)
    assert load_image(most + jpeg_of_scans(100)).size == (48, 32)  # as phones append images
    for source in (jpeg_of_scans(101), Image.open(io.BytesIO(jpeg_of_scans(101)))):
        with pytest.raises(swsl.ImageError, match="a JPEG of more than 100 scans, .*expected at most 100"):
            load_image(source)


def test_specs_travel_as_json() -> None:
    for spec in SPECS:
        assert PreprocessSpec.from_json(spec.to_json()) == spec
    with pytest.raises(ValueError, match="expected an object with input_size, crop_pct"):
        PreprocessSpec.from_json('{"input_size": [224, 224]}')
    with pytest.raises(ValueError, match="PreprocessSpec: expected JSON, got '{'"):
        PreprocessSpec.from_json("{")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input_size", (224,)),
        ("input_size", (224, 0)),
        ("input_size", 224),
        ("input_size", (224.0, 224)),
        ("crop_pct", 0),
        ("crop_pct", 1.1),
        ("crop_pct", "0.9"),
        ("interpolation", "nearest"),
        ("mean", (0.5, 0.5)),
        ("mean", 0.5),
        ("mean", ("a", 0.5, 0.5)),
        ("mean", (0.5, 0.5, float("nan"))),
        ("std", (0.5, 0.5, 0.0)),
    ],
)
def test_specs_are_validated(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field}: expected .*, got"):
        PreprocessSpec(**{field: value})
