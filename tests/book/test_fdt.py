"""FDT: what the page builds, and what its checks say."""

import pytest
import torch

from mmcl_book.experiments import fdt, small, tokens
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from mmcl_core.methods import FDT
from mmcl_core.methods.fdt import Cooling
from mmcl_core.sparsemax import sparsemax
from tests.book.chapter import definitions, value_and_gradients


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("count", [1, 2, 9, 60])
def test_sparsemax_of_the_page(count: int, scale: float) -> None:
    page = definitions("methods/fdt")
    generator = torch.Generator().manual_seed(count)
    scores = scale * torch.randn(5, count, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        value_and_gradients(lambda s: (page["sparsemax_vectorised"](s) ** 2).sum(), scores),
        value_and_gradients(lambda s: (sparsemax(s) ** 2).sum(), scores),
    )
    for row in scores:
        torch.testing.assert_close(page["sparsemax_loop"](row), sparsemax(row))


def always(temperature: float) -> Cooling:
    """A schedule that stays where it is."""
    return Cooling(temperature, temperature, 10)


def fdt_and_tiny(temperature: float) -> tuple[FDT, torch.nn.Module, dict[str, torch.Tensor]]:
    """The library's and that of the page, with the same weights; and a batch with padding."""
    data = small.scenes(12, 3)
    torch.manual_seed(0)
    words = CaptionEncoder(len(data.tokenizer), width=32)
    library = FDT(
        ImageEncoder(size=32, width=32),
        words,
        codebook_size=40,
        dim=16,
        grounding_temperature=temperature,
    )
    tiny = definitions("methods/fdt")["TinyFDT"](
        library.encoders["image"], library.encoders["caption"], 40, 16, always(temperature)
    )
    tiny.load_state_dict({k: v for k, v in library.state_dict().items() if k != "step"})
    return library, tiny, data.batch(range(12))


@pytest.mark.parametrize("temperature", [1.0, 30.0])
def test_tiny_fdt_is_fdt(temperature: float) -> None:
    library, tiny, batch = fdt_and_tiny(temperature)
    mine, theirs = tiny.loss(batch)["total"], library.loss(batch)["total"]
    torch.testing.assert_close(mine, theirs)
    mine.backward()
    gradients = {name: p.grad.clone() for name, p in tiny.named_parameters() if p.grad is not None}
    library.zero_grad()
    theirs.backward()
    for name, parameter in library.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=5e-5, rtol=1e-3)


def test_tiny_fdt_cools_as_the_library_does() -> None:
    data = small.scenes(12, 3)
    cooling = Cooling(30.0, 2.0, 5)
    library = fdt.new_fdt(data, 0, start=30.0, end=2.0, steps=5)
    tiny = definitions("methods/fdt")["TinyFDT"](*fdt.encoders(data), 40, 16, cooling)
    for _ in range(5):
        library.after_step()
        tiny.after_step()
        assert {head.temperature for head in tiny.heads.values()} == {library.grounding_temperature}


def test_groundings_of_the_page_are_the_library_s() -> None:
    page, (library, tiny, batch) = definitions("methods/fdt"), fdt_and_tiny(2.0)
    for name in ("image", "caption"):
        encoded, head = library.encoders[name](batch[name]), library.heads[name]
        assert name == "image" or not encoded.mask.all()
        expected = head(encoded.tokens, library.codebook, encoded.mask)
        mixture, weights = tiny.heads[name](encoded.tokens, tiny.codebook, encoded.mask)
        torch.testing.assert_close(mixture, expected.feature)
        torch.testing.assert_close(weights, expected.weights)
        queries = head.query(encoded.tokens)
        for i in (0, 7):
            one, w = page["ground_loop"](queries[i], library.codebook, 2.0, encoded.mask[i])
            torch.testing.assert_close(one, expected.feature[i], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(w, expected.weights[i])


def test_steps_of_a_grounding() -> None:
    page, (library, _, batch) = definitions("methods/fdt"), fdt_and_tiny(2.0)
    one = {name: values[3:4] for name, values in batch.items()}
    queries, scores, pooled = page["grounding_steps"](library, one, "image")
    with torch.no_grad():
        of = library.token_attention(one)["image"]
    torch.testing.assert_close(scores, of.scores[0])
    torch.testing.assert_close(sparsemax(pooled), of.weights[0])
    assert queries.shape == (16, 16)


def test_purity_by_hand_is_that_of_the_library(monkeypatch) -> None:
    monkeypatch.setattr(tokens, "OFTEN", 1)
    generator = torch.Generator().manual_seed(0)
    token, colour = torch.randint(4, (90,), generator=generator), torch.randint(6, (90,))
    found = tokens.purity(token, {"colour": colour}).above["colour"]
    by_hand = definitions("methods/fdt")["purity_by_hand"]
    for t in range(4):
        assert by_hand(colour[token == t].tolist(), colour.tolist()) == pytest.approx(
            float(found[t])
        )


def test_moved_weight_goes_where_it_should() -> None:
    move = definitions("methods/fdt")["move"]
    weights = torch.tensor([[0.5, 0.2, 0.3, 0.0], [0.0, 0.6, 0.1, 0.3]])
    moved = move(weights, [0], [2, 3], torch.tensor([9.0, 9.0, 1.0, 3.0]))
    torch.testing.assert_close(
        moved, tokens.moved(weights, [0], [2, 3], torch.tensor([9.0, 9.0, 1.0, 3.0]))
    )
    assert weights[0, 0] == 0.5


def test_fdt_exercises_name_what_fails() -> None:
    page = definitions("methods/fdt")
    check = page["check_two"]
    assert check(page["sparsemax_of_two"]) == "not answered yet"
    assert check(page["two"]) == "right"
    assert "sum to 1" in check(lambda a, b: (0.5, 0.4))
    assert "below 0" in check(lambda a, b: ((1 + a - b) / 2, (1 - a + b) / 2))
    assert "leave one" in check(lambda a, b: (w := min(max((1 + a - b) / 2, 0.1), 0.9), 1 - w))
    assert "differ by 0.5" in check(lambda a, b: (0.5, 0.5) if abs(a - b) < 1 else (a > b, a < b))
    check = page["check_pool"]
    assert check(page["pool"]) == "not answered yet"
    assert check(lambda s, m: s.masked_fill(~m[:, :, None], -torch.inf).amax(1)) == "right"
    assert "shape" in check(lambda s, m: s)
    assert "counts as 0" in check(lambda s, m: (s * m[:, :, None]).amax(1))
    assert "plain maximum" in check(lambda s, m: s.mean(1))
    assert "real words" in check(lambda s, m: s.amax(1))
    check = page["check_binding"]
    assert check(page["binding"]) == "not answered yet"
    assert check(lambda: [[1, 0, 1, 0], [1, 0, 0, 1]]) == "right"
    assert "[C, 4]" in check(lambda: [1, 0, 1, 0])
    assert "single token" in check(lambda: [[1, 0, 1, 0]])
    assert "equally present" in check(lambda: torch.eye(4))
    assert "the sparsemax makes" in check(lambda: [[9, 0, 9, 0], [1, 0, 0, 1]])
    pairs = [[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]]
    assert "both mix to" in check(lambda: pairs)
