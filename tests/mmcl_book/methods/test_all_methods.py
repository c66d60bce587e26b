"""What is asked of every method. A new one needs a line in `BUILD`, and is then asked all of it."""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from mmcl_book import methods as of_the_book
from mmcl_book.methods import FDTGMC, MMVAE, MVAE, CodeCLIP, MoCoCLIP
from mmcl_book.methods.blending import GradientBlending
from mmcl_book.methods.vae import PictureDecoder, WordsDecoder
from mmcl_core import methods as of_the_library
from mmcl_core.batches import Batch
from mmcl_core.data import ShapesCaptions
from mmcl_core.encoders import CaptionEncoder, Encoded, ImageEncoder, ProjectionHead, TagEncoder
from mmcl_core.errors import MMCLError, ShapeError
from mmcl_core.grounding import FDTGrounding
from mmcl_core.methods import CLIP, FDT, GMC, MCT, LateFusion, Method, MoCo
from mmcl_core.methods.fdt import Cooling
from mmcl_core.methods.moco import KeyQueue, MomentumCopy
from mmcl_core.training import fit

PUBLIC = [
    kind
    for module in (of_the_library, of_the_book)
    for name in module.__all__
    if (kind := vars(module)[name]) is not Method
]

SIZE, WORDS, TAGS = 6, 9, 5


def encoders() -> dict[str, nn.Module]:
    return {
        "image": ImageEncoder(size=16, width=32),
        "caption": CaptionEncoder(WORDS, width=32, max_length=30),
        "tags": TagEncoder(TAGS, width=32),
    }


def scenes(seed: int = 1) -> Batch:
    """All that any method asks for. The first and the last caption are the same text."""
    g = torch.Generator().manual_seed(seed)
    captions = torch.randint(1, WORDS, (2, SIZE, 5), generator=g)
    captions[:, ::2, 3:] = 0
    captions[:, -1] = captions[:, 0]
    pictures = torch.rand(2, SIZE, 3, 16, 16, generator=g)
    return {
        "image": pictures[0],
        "image_view": pictures[1],
        "caption": captions[0],
        "caption_view": captions[1],
        "tags": (torch.rand(SIZE, TAGS, generator=g) < 0.5).float().clamp_(min=0.0),
        "label": torch.arange(SIZE) % 3,
    }


def pair(kind: type) -> Callable[..., Any]:
    """For the methods that take an encoder of pictures and one of captions."""

    def build(**settings: Any) -> Any:
        by_name = encoders()
        return kind(by_name["image"], by_name["caption"], **settings)

    return build


def fusion(**settings: Any) -> LateFusion:
    method = LateFusion(encoders(), **{"classes": 3} | settings)
    method.set_weights(dict.fromkeys(method.heads, 0.25))
    return method


# Each public method, small; the settings are those that a test may change.
BUILD: dict[type, Callable[..., Any]] = {k: pair(k) for k in PUBLIC if issubclass(k, CLIP)}
BUILD |= {
    MoCo: lambda **s: MoCo(encoders()[s.get("modality", "image")], **{"queue": 12} | s),
    MCT: lambda **s: pair(MCT)(**{"queue": 12, "tags": TAGS} | s),
    GMC: lambda **s: GMC(encoders(), **s),
    LateFusion: fusion,
    MVAE: pair(MVAE),
    MMVAE: pair(MMVAE),
}
SMALL: dict[str, Any] = {
    "dim": 8, "hidden": 10, "common": 12, "queue": 12, "codebook_size": 24,
    "grounding_temperature": 3.0,
}  # fmt: skip

# The methods in all their forms: what differs between them is how they compute.
FORMS: dict[str, tuple[type, dict[str, Any]]] = {
    **{kind.__name__: (kind, {}) for kind in BUILD},
    **{
        f"{kind.__name__} {pooling}": (kind, {"pooling": pooling})
        for kind in (FDT, FDTGMC)
        for pooling in ("mean", "sum")
    },
    "FDT softmax": (FDT, {"normalizer": "softmax"}),
    "FDTGMC sigmoid": (FDTGMC, {"normalizer": "sigmoid", "pooling": "mean"}),
    "FDT zero": (FDT, {"padding": "zero", "pooling": "sum"}),
    "CodeCLIP summary": (CodeCLIP, {"summary": True}),
    "CodeCLIP warm": (CodeCLIP, {"warmup": 9}),
    "MoCo of captions": (MoCo, {"modality": "caption"}),
    "MCT hinge": (MCT, {"inter": "hinge"}),
    "GMC paper": (GMC, {"variant": "paper"}),
    "LateFusion mean": (LateFusion, {"impute": "mean"}),
}
every_form = pytest.mark.parametrize("form", FORMS)
every_method = pytest.mark.parametrize("kind", BUILD, ids=lambda kind: kind.__name__)


def build(kind: type, seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    known = inspect.signature(kind).parameters
    return BUILD[kind](**{n: v for n, v in SMALL.items() if n in known} | settings)


def formed(form: str, seed: int = 0) -> Any:
    kind, settings = FORMS[form]
    return build(kind, seed, **settings)


def loss(method: nn.Module, batch: Batch) -> Batch:
    """With the same random numbers each time."""
    torch.manual_seed(7)
    return method(batch)


def embedded(method: Any, batch: Batch) -> list[Tensor]:
    """From all that it embeds, and from the caption alone where it can."""
    with torch.no_grad():
        if isinstance(method, MoCo):
            return [method.embed(batch)]
        return [method.embed(batch), method.embed({"caption": batch["caption"]})]


def test_every_public_method_is_asked() -> None:
    assert set(BUILD) == set(PUBLIC)
    assert all(issubclass(kind, Method) for kind in PUBLIC)


# --- to call a method is to compute its loss ------------------------------------------------------


def assert_same_parts(got: Batch, expected: Batch, **how: float) -> None:
    assert list(got) == list(expected)
    for name in expected:
        torch.testing.assert_close(
            got[name], expected[name], **how, msg=lambda m, n=name: f"{n}: {m}"
        )


@every_method
def test_a_call_is_the_loss_and_hooks_see_it(kind: type) -> None:
    method, seen = build(kind), []
    torch.manual_seed(7)
    expected = method.loss(scenes())
    method.register_forward_hook(lambda module, args, parts: seen.append(parts["total"]))
    got = loss(method, scenes())
    assert_same_parts(got, expected, rtol=0, atol=0)
    assert seen == [got["total"]]


@pytest.mark.parametrize("kind", [CLIP, MCT])  # all would take a minute; a call is a call
def test_a_compiled_method_compiles_its_loss(kind: type) -> None:
    method, graphs = build(kind), []

    def counted(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(method, backend=counted)
    assert_same_parts(loss(compiled, scenes()), loss(build(kind), scenes()))
    assert graphs


@contextlib.contextmanager
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@every_method
def test_ddp_trains_a_method(kind: type) -> None:
    plain, method = build(kind), build(kind)
    loss(plain, scenes())["total"].backward()
    with group_of_one():
        wrapped = DistributedDataParallel(method, find_unused_parameters=True)
        loss(wrapped, scenes())["total"].backward()
    for (name, p), q in zip(plain.named_parameters(), method.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, msg=lambda m, n=name: f"{n}: {m}")


def test_fit_calls_the_method() -> None:
    data, seen = ShapesCaptions(16, size=24), []
    words = CaptionEncoder(len(data.tokenizer), width=32)
    method = CLIP(ImageEncoder(size=24, width=32), words, dim=8)
    method.register_forward_hook(lambda *_: seen.append(0))
    fit(method, data, epochs=2, batch_size=8, progress=False)
    assert len(seen) == 4


# --- numbers --------------------------------------------------------------------------------------


def networks(module: nn.Module) -> Iterator[nn.Module]:
    """What turns inputs into features: encoders, decoders, and single layers anywhere else."""
    whole = isinstance(module, (ImageEncoder, CaptionEncoder, TagEncoder, PictureDecoder))
    if whole or not list(module.children()):
        if type(module).forward is not nn.Module.forward and not isinstance(module, Method):
            yield module
        return
    for child in module.children():
        yield from networks(child)


def rounded(method: nn.Module, *, as_float32: bool) -> nn.Module:
    """Each network computes in float32, and what it returns is rounded to bfloat16: as it is under
    autocast. As bfloat16, or the same numbers as float32.
    """

    def after(x: Any) -> Any:
        if isinstance(x, Encoded):
            return Encoded(*map(after, x))
        if not x.is_floating_point():
            return x
        return x.bfloat16().float() if as_float32 else x.bfloat16()

    def wrap(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Tensor) -> Any:
            with torch.autocast("cpu", enabled=False):
                return after(forward(*(x.float() if x.is_floating_point() else x for x in args)))

        return run

    for network in {id(n): n for n in networks(method)}.values():
        network.forward = wrap(network.forward)  # type: ignore[method-assign]
    return method


@every_form
def test_what_follows_the_networks_is_float32_under_autocast(form: str) -> None:
    """B6. Sums, logits and choices, the embedding, and what a step leaves in the buffers."""
    half, full = (rounded(formed(form), as_float32=flag) for flag in (False, True))
    for seed in (1, 2):
        with torch.autocast("cpu", torch.bfloat16):
            got = loss(half, scenes(seed))
        expected = loss(full, scenes(seed))
        assert {part.dtype for part in got.values()} == {torch.float32}
        assert_same_parts(got, expected, rtol=2e-5, atol=2e-5)
        for method in (half, full):
            method.after_step()
    with torch.autocast("cpu", torch.bfloat16):
        vectors = embedded(half, scenes(3))
    for x, y in zip(vectors, embedded(full, scenes(3)), strict=True):
        torch.testing.assert_close(x, y, rtol=2e-5, atol=2e-5)
    left = (dict(method.named_buffers()) for method in (half, full))
    assert_same_parts(*left, rtol=2e-5, atol=2e-5, equal_nan=True)


@every_form
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_method_in_another_precision(form: str, dtype: torch.dtype) -> None:
    """B7. Pictures are float32, as data sets give them."""
    method, batch = formed(form).to(dtype), scenes()
    parts = loss(method, batch)
    parts["total"].backward()
    assert parts["total"].dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)
    method.after_step()
    expected = loss(formed(form).double(), batch)
    tolerance = 1e-9 if dtype == torch.float64 else 0.1
    torch.testing.assert_close(
        parts["total"].double(), expected["total"], rtol=tolerance, atol=tolerance
    )
    for vectors in embedded(method, batch):
        assert vectors.norm(dim=1).sub(1).abs().max() < 1e-3


@every_form
def test_padding_changes_nothing(form: str) -> None:
    """B7. Twenty more columns of padding."""
    method, batch = formed(form).double(), scenes()
    wider = batch | {
        name: nn.functional.pad(batch[name], (0, 20)) for name in ("caption", "caption_view")
    }
    for x, y in zip(embedded(method, wider), embedded(method, batch), strict=True):
        torch.testing.assert_close(x, y)
    assert_same_parts(loss(method, wider), loss(method, batch))


# --- arguments ------------------------------------------------------------------------------------


# Whatever else takes numbers: what builds it, and the arguments it cannot do without.
OTHERS: dict[type, dict[str, Any]] = {
    FDTGrounding: {"width": 4, "dim": 6},
    Cooling: {"start": 9.0, "end": 3.0, "steps": 5},
    KeyQueue: {"length": 4, "dim": 3},
    MomentumCopy: {"network": nn.Linear(2, 2), "momentum": 0.5},
    ImageEncoder: {},
    CaptionEncoder: {"vocabulary": 5},
    TagEncoder: {"tags": 5},
    ProjectionHead: {"in_dim": 4, "out_dim": 3},
    PictureDecoder: {"dim": 4},
    WordsDecoder: {"dim": 4, "vocabulary": 9},
    GradientBlending: {"train": {}, "validation": {}, "every": 1},
}
# What may be 0; `bias` may be below it, too.
ZERO = {
    "bias", "commitment", "decay", "depth", "dropout", "labels", "margin", "matching", "momentum",
    "tags", "warmup", "weight",
}  # fmt: skip


def numeric(kind: type) -> list[str]:
    """The arguments that are numbers, or may be."""
    return [
        name
        for name, p in inspect.signature(kind).parameters.items()
        if {int, float} & set(get_args(p.annotation) or (p.annotation,))
    ]


NUMBERS = [(kind, name) for kind in (*BUILD, *OTHERS) for name in numeric(kind)]
each_number = pytest.mark.parametrize(("kind", "name"), NUMBERS)


def with_argument(kind: type, name: str, value: Any) -> Any:
    if kind in BUILD:
        return build(kind, **{name: value})
    return kind(**OTHERS[kind] | {name: value})


@each_number
@pytest.mark.parametrize("value", [-1, 0, math.inf, math.nan, True, "3"])
def test_a_number_is_checked_where_it_is_given(kind: type, name: str, value: Any) -> None:
    """B13."""
    zero = name in ZERO and kind is not TagEncoder
    if (value == 0 and zero) or (value in (0, -1) and name == "bias"):
        with_argument(kind, name, value)
        return
    with pytest.raises(MMCLError, match=rf"\b{name} must be .*got {value!r}"):
        with_argument(kind, name, value)


@each_number
def test_numbers_of_numpy_become_plain_ones(kind: type, name: str) -> None:
    """So that a checkpoint of them can be read."""
    p = inspect.signature(kind).parameters[name]
    given = OTHERS.get(kind, {}).get(name, SMALL.get(name, p.default))
    if given in (None, inspect.Parameter.empty, "auto"):
        given = 2
    made = with_argument(kind, name, (np.int64 if isinstance(given, int) else np.float64)(given))
    if isinstance(made, nn.Module):
        kept = [value for module in made.modules() for value in vars(module).values()]
        assert not any(isinstance(value, np.generic) for value in kept)


@every_method
def test_names_mean_one_thing(kind: type) -> None:
    """B13, B14: nothing is accepted under any name; `temperature` is the contrastive loss's."""
    arguments = inspect.signature(kind).parameters
    assert all(p.kind is not p.VAR_KEYWORD for p in arguments.values())
    assert not {"tokens", "scale", "codes", "loss_temperature"} & set(arguments)
    others = {n for n in arguments if n.endswith("_temperature")} - {"learn_temperature"}
    expected = {MCT: {"intra_temperature", "inter_temperature"}, FDT: {"grounding_temperature"}}
    expected |= {FDTGMC: {"grounding_temperature"}, MoCoCLIP: {"moco_temperature"}}
    assert others == expected.get(kind, set())
    contrastive = not issubclass(kind, (MCT, LateFusion, MVAE, MMVAE))
    assert ("temperature" in arguments) == contrastive
    assert ("learn_temperature" in arguments) == issubclass(kind, CLIP)
    assert arguments.get("dim", arguments["dim"]).default == 128
    if contrastive:
        method = build(kind, temperature=0.125)
        assert method.temperature == pytest.approx(0.125)


class Shapes(TorchDispatchMode):
    """The shapes of all that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[str, tuple[int, ...]]] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor):
                self.found.add((str(function), tuple(x.shape)))
        return out


# Another value for each argument, and the settings without which it has no say.
ANOTHER: dict[str, Any] = {
    "dim": 16, "hidden": 14, "common": 14, "queue": 24, "codebook_size": 30, "classes": 4,
    "temperature": 0.5, "moco_temperature": 0.9, "intra_temperature": 0.9,
    "inter_temperature": 0.9, "grounding_temperature": 9.0, "learn_temperature": False,
    "chunk_size": 2, "bias": 3.0, "weight": 3.0, "momentum": 0.3, "modality": "caption",
    "tags": 0, "weights": {"image": 3.0}, "min_shared_tags": 1, "inter": "hinge", "margin": 0.9,
    "normalizer": "softmax", "pooling": "sum", "padding": "zero", "variant": "paper",
    "average": "plain", "dropout": 0.5, "impute": "mean", "pixel_std": 0.5, "caption_weight": 1.0,
    "matching": 0.0, "commitment": 0.0, "decay": 0.1, "warmup": 5, "summary": True,
}  # fmt: skip
WITH: dict[str, dict[str, Any]] = {"margin": {"inter": "hinge"}, "padding": {"pooling": "mean"}}


def observed(kind: type, **settings: Any) -> tuple[Any, ...]:
    """Whatever shows of a method in two steps, and in an embedding of a part."""
    method = build(kind, **settings)
    trained = [name for name, p in method.named_parameters() if p.requires_grad]
    with Shapes() as shapes:
        losses = []
        for seed in (1, 2, 3):
            parts = loss(method, scenes(seed))
            parts["total"].backward()
            for p in method.parameters():
                if p.grad is not None:
                    p.data -= 1e-3 * p.grad
            method.after_step()
            losses.append(parts["total"].item())
    batch = scenes()
    if not isinstance(method, MoCo):
        batch = {name: batch[name] for name in ("image", "caption")}
    with torch.no_grad():
        vectors = method.eval().embed(batch)
    sums = {n: (tuple(v.shape), v.double().sum().item()) for n, v in method.state_dict().items()}
    return trained, shapes.found, losses, vectors.tolist(), str(sums)


ARGUMENTS = [
    (kind, name)
    for kind in BUILD
    for name, p in inspect.signature(kind).parameters.items()
    if not name.endswith(("encoder", "encoders"))
]


@pytest.mark.parametrize(("kind", "name"), ARGUMENTS)
def test_every_argument_does_something(kind: type, name: str) -> None:
    """B13."""
    needed = WITH.get(name, {})
    needed |= {"weights": {}} if name == "tags" else {}
    assert observed(kind, **needed) != observed(kind, **needed | {name: ANOTHER[name]})


@pytest.mark.parametrize(("kind", "name"), ARGUMENTS)
def test_settings_show_in_the_state_or_in_plain_attributes(kind: type, name: str) -> None:
    """So that a checkpoint can tell whether it is of a method that was made in the same way."""

    def shown(method: Any) -> Any:
        plain = (bool, int, float, str, Cooling)
        return {n: (v.shape, v.double().sum()) for n, v in method.state_dict().items()}, {
            (path, n): v
            for path, module in method.named_modules()
            for n, v in vars(module).items()
            if not n.startswith("_")
            and (isinstance(v, plain) or (isinstance(v, dict) and n == "weights"))
        }

    assert str(shown(build(kind))) != str(shown(build(kind, **{name: ANOTHER[name]})))


# --- encoders of one's own ------------------------------------------------------------------------


class Own(nn.Module):
    """An encoder that returns what it is told to."""

    size, vocabulary = 16, WORDS

    def __init__(self, returns: Callable[[Tensor], Any], width: int | None = 4) -> None:
        super().__init__()
        if width is not None:
            self.width = width
        self.weight, self.returns = nn.Parameter(torch.ones(1)), returns

    def forward(self, values: Tensor) -> Any:
        return self.returns(values.flatten(1)[:, :4].float() * self.weight)


def with_encoder(kind: type, encoder: nn.Module) -> Any:
    if kind is MoCo:
        return MoCo(encoder, queue=12)
    if kind is GMC:
        return GMC({"image": encoder, "caption": encoders()["caption"]})
    if kind is LateFusion:
        return LateFusion({"image": encoder}, 3)
    queue = {"queue": 12} if "queue" in inspect.signature(kind).parameters else {}
    return kind(encoder, encoders()["caption"], **queue)


def true(x: Tensor) -> Tensor:
    return torch.ones(len(x), 1, dtype=torch.bool)


@every_method
def test_an_encoder_of_ones_own(kind: type) -> None:
    """B13. What it must return is said where it does not."""
    good = with_encoder(kind, Own(lambda x: Encoded(x, x[:, None], true(x))))
    good(scenes())["total"].backward()
    for returns, message in (
        (lambda x: x, r"Own must return Encoded\(pooled.*got a tensor \[6, 4\]"),
        (lambda x: (x, x), r"Own must return Encoded\(pooled.*got tuple"),
        (lambda x: Encoded(x[:, :3], x[:, None], true(x)), r"pooled \[6, 4\].*float32 \[6, 3\]"),
        (lambda x: Encoded(x[:2], x[:, None], true(x)), r"pooled \[6, 4\].*float32 \[2, 4\]"),
        (lambda x: Encoded(x, x[:, None], true(x).long()), "a mask bool .*int64"),
        (lambda x: Encoded(x, None, None), "got .*None"),
    ):
        with pytest.raises(MMCLError, match=message):
            with_encoder(kind, Own(returns))(scenes())
    with pytest.raises(MMCLError, match="Own has no `width`"):
        with_encoder(kind, Own(lambda x: x, width=None))
    with pytest.raises(MMCLError, match=r"an nn\.Module that returns `Encoded`; got function"):
        with_encoder(kind, lambda x: x)


def test_a_grounding_of_no_samples() -> None:
    """B13."""
    with pytest.raises(ShapeError, match=r"B, N and C at least 1; got \[0, 3, 4\]"):
        FDTGrounding(4, 6)(torch.zeros(0, 3, 4), torch.ones(5, 6))
