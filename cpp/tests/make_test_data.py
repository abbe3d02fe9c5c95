"""Models and expected values for the C++ tests: python make_test_data.py FOLDER."""

import json
import shutil
import sys
import zipfile
from pathlib import Path

import PIL.Image
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import swsl  # noqa: E402
from swsl.deploy.export import export_model, read_metadata  # noqa: E402

CLASSES = 10


def seeded_model() -> swsl.ResNeXt:
    torch.manual_seed(0)
    model = swsl.ResNeXt((1, 1, 1, 1), groups=4, width_per_group=4, num_classes=CLASSES)
    for name, module in model.named_modules():
        if isinstance(
            module, torch.nn.BatchNorm2d
        ):  # as different as trained ones, so that folding them is tested
            torch.nn.init.uniform_(
                module.weight, 0.1 if name.endswith("bn3") else 0.5, 0.3 if name.endswith("bn3") else 1.5
            )
            torch.nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.nn.init.normal_(model.fc.weight, std=0.1)
    return model.eval()


def with_metadata(source: Path, target: Path, change) -> None:
    """A copy of a frozen module whose swsl.json went through `change`; None takes the file away."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename.endswith("extra/swsl.json"):
                data = change(json.loads(data))
                if data is None:
                    continue
            new.writestr(item.filename, data)


def changed(**values):
    return lambda metadata: json.dumps({**metadata, **values})


def wrong_golden(metadata):
    metadata["golden"]["logits"][3] += 0.01 * max(map(abs, metadata["golden"]["logits"]))
    return json.dumps(metadata)


class Pixels(torch.nn.Module):
    """Every operator of the network table in as few bytes as it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(4)
        self.pool = torch.nn.MaxPool2d(3, stride=2, padding=1)
        self.grouped = torch.nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.fc = torch.nn.Linear(4, 2)

    def forward(self, x):
        x = self.pool(torch.relu(self.norm(self.stem(x))))
        x = torch.relu(x + self.grouped(x))
        return self.fc(torch.flatten(torch.nn.functional.adaptive_avg_pool2d(x, 1), 1))


def fuzz_seeds(folder: Path) -> None:
    """What the libFuzzer targets begin with: small files of many kinds."""
    for name in ("jpeg", "png", "model", "json"):
        (folder / name).mkdir(parents=True)
    picture = PIL.Image.open(ROOT / "swsl" / "cli" / "chelsea.jpg").resize((25, 19))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # lies on its side
    for name, mode, options in (
        ("plain", "RGB", {}),
        ("full", "RGB", {"subsampling": 0, "exif": exif}),
        ("wide", "RGB", {"subsampling": 1, "restart_marker_blocks": 1}),
        ("progressive", "RGB", {"progressive": True}),
        ("grey", "L", {"quality": 30}),
        ("cmyk", "CMYK", {}),
    ):
        picture.convert(mode).save(folder / "jpeg" / f"{name}.jpg", **options)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = picture.convert("L") if mode == "I;16" else picture
        image.convert(mode).save(folder / "png" / f"{mode.replace(';', '')}.png", exif=exif)
    picture.quantize(3).save(folder / "png" / "few.png", bits=2, transparency=1)

    torch.manual_seed(0)
    spec = swsl.PreprocessSpec(input_size=(8, 8))
    for name in ("small.pt", "small.pt2"):
        path = folder / "model" / name
        export_model(Pixels().eval(), path, spec=spec, labels=["a", "b"], license="none")
    (folder / "json" / "swsl.json").write_text(json.dumps(read_metadata(path)))
    texts = ('[1.5e3, -0, null, true, {"a": "\\ud83d\\ude00\\n"}]', '{"é": [[[]]], "": 9223372036854775807}')
    for i, text in enumerate(texts):
        (folder / "json" / f"{i}.json").write_text(text, "utf-8")


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = seeded_model()
    spec = swsl.PreprocessSpec(input_size=(64, 64))
    tiny = folder / "tiny.pt"
    labels = [f"class {i}" for i in range(CLASSES - 1)] + ['a, "quoted" é']
    for path in (tiny, folder / "tiny.pt2"):
        export_model(model, path, spec=spec, labels=labels, license="none")

    photo = folder / "photo.jpg"
    shutil.copy(ROOT / "swsl" / "cli" / "chelsea.jpg", photo)
    with torch.inference_mode():
        batch = swsl.preprocess(photo, spec)[None]
        features = model.forward_head(model.forward_features(batch), pre_logits=True)
        for name, tensor in {"input": batch, "features": features, "logits": model(batch)}.items():
            (folder / f"{name}.f32").write_bytes(bytes(tensor.contiguous().untyped_storage()))

    # An activation that the planned CPU engine does not know.
    other = seeded_model()
    for module in other.modules():
        if hasattr(module, "relu"):
            module.relu = torch.nn.SiLU()
    export_model(
        other, folder / "silu.pt", spec=spec, labels=[str(i) for i in range(CLASSES)], license="none"
    )

    with_metadata(tiny, folder / "format_2.pt", changed(format=2))
    with_metadata(tiny, folder / "format_9.pt", changed(format=9))
    with_metadata(tiny, folder / "few_labels.pt", changed(labels=["one"]))
    with_metadata(tiny, folder / "wrong_golden.pt", wrong_golden)
    with_metadata(tiny, folder / "bad_json.pt", lambda _: '{"format": 1,')
    with_metadata(tiny, folder / "no_json.pt", lambda _: None)
    with_metadata(folder / "tiny.pt2", folder / "no_json.pt2", lambda _: None)
    # Of another network than ours.
    with_metadata(
        tiny, folder / "other_architecture.pt",
        changed(architecture={"layers": None, "groups": None, "width_per_group": None, "num_classes": CLASSES}),
    )  # fmt: skip
    torch.save(model.state_dict(), folder / "weights.pth")
    # A weight that is another than when the archive was written.
    with zipfile.ZipFile(tiny) as archive:
        (entry,) = (item for item in archive.infolist() if item.filename.endswith("/constants/4"))
        weight = archive.read(entry)[:64]
    sound = tiny.read_bytes()
    (folder / "damaged_weights.pt").write_bytes(sound.replace(weight, weight[:60] + b"\0\0\0\0", 1))
    (folder / "truncated.pt").write_bytes(tiny.read_bytes()[:100_000])
    (folder / "empty.pt").touch()
    metadata = json.dumps(read_metadata(tiny))
    torch.jit.script(model).save(str(folder / "unfrozen.pt"), _extra_files={"swsl.json": metadata})
    fuzz_seeds(folder / "seeds")


main(Path(sys.argv[1]))
