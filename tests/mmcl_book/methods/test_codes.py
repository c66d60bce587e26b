"""Shared codes: the nearest by a loop, matching by a loop, running means, and the whole method."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcl_book.methods import CodeCLIP
from mmcl_book.methods.codes import code_matching_loss, quantise
from mmcl_core.data import ShapesCaptions
from mmcl_core.data.groups import caption_groups
from mmcl_core.encoders import CaptionEncoder, ImageEncoder
from mmcl_core.errors import MissingModalityError, MMCLError, ShapeError
from mmcl_core.losses import clip_loss
from mmcl_core.training import fit


def small(seed: int = 0, **kwargs: Any) -> CodeCLIP:
    torch.manual_seed(seed)
    encoders = ImageEncoder(size=16, width=32), CaptionEncoder(12, width=32, max_length=8)
    return CodeCLIP(*encoders, **{"codebook_size": 7, "dim": 8} | kwargs).double()


def scenes(size: int = 6) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    captions = torch.randint(1, 12, (size, 6), generator=g)
    captions[0, 3:] = 0
    captions[-1] = captions[1]
    return {
        "image": torch.rand(size, 3, 16, 16, generator=g, dtype=torch.float64),
        "caption": captions,
    }


def some(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [3, 4, 2], codes [5, 2], and a mask with one to four real tokens."""
    g = torch.Generator().manual_seed(seed)
    tokens, codebook = (
        torch.randn(*s, 2, generator=g, dtype=torch.float64) for s in ((3, 4), (5,))
    )
    return tokens, codebook, torch.arange(4) < torch.tensor([[4], [2], [1]])


# --- quantising -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_nearest_code_and_the_soft_shares_by_a_loop(seed: int) -> None:
    tokens, codebook, mask = some(seed)
    found = quantise(tokens, codebook, mask)
    for b in range(3):
        shares, held, real = [0.0] * 5, 0.0, int(mask[b].sum())
        for n in range(4):
            far = [math.dist(tokens[b, n].tolist(), code.tolist()) for code in codebook]
            best = far.index(min(far))
            assert int(found.codes[b, n]) == best
            torch.testing.assert_close(found.tokens[b, n], codebook[best])
            if n < real:
                total = sum(math.exp(-d) for d in far)
                shares = [s + math.exp(-d) / total / real for s, d in zip(shares, far, strict=True)]
                held += far[best] ** 2 / 2 / real
        assert found.shares[b].tolist() == pytest.approx(shares)
        assert float(found.commitment[b]) == pytest.approx(held)


def test_the_gradient_passes_straight_through() -> None:
    tokens, codebook, mask = some()
    tokens.requires_grad_()
    slope = torch.randn_like(tokens)
    (quantise(tokens, codebook, mask).tokens * slope).sum().backward()
    torch.testing.assert_close(tokens.grad, slope)


def test_a_token_on_its_code_has_a_finite_gradient() -> None:
    tokens, codebook, mask = some()
    tokens = codebook[:4].expand(3, 4, 2).clone().requires_grad_()
    found = quantise(tokens, codebook, mask)
    (found.shares.log().sum() + found.commitment.sum()).backward()
    assert tokens.grad is not None
    assert tokens.grad.isfinite().all()


# --- code matching --------------------------------------------------------------------------------


def by_loop(P: Tensor, Q: Tensor, groups: list[int]) -> float:
    n, total = len(P), 0.0
    for first, second in ((P.tolist(), Q.tolist()), (Q.tolist(), P.tolist())):
        for i in range(n):
            scores = [
                sum(
                    a * math.log(b) + b * math.log(a)
                    for a, b in zip(first[i], second[j], strict=True)
                )
                for j in range(n)
            ]
            whole = math.log(sum(math.exp(s) for s in scores))
            right = [s for s, group in zip(scores, groups, strict=True) if group == groups[i]]
            total += sum(whole - s for s in right) / len(right) / (2 * n)
    return total


@pytest.mark.parametrize("groups", [[0, 1, 2, 3], [0, 1, 1, 0], [2, 2, 2, 1]])
def test_matching_by_a_loop(groups: list[int]) -> None:
    g = torch.Generator().manual_seed(1)
    P, Q = torch.rand(2, 4, 6, generator=g, dtype=torch.float64).softmax(2)
    found = code_matching_loss(P, Q, groups=torch.tensor(groups))
    assert float(found) == pytest.approx(by_loop(P, Q, groups))
    assert float(code_matching_loss(Q, P, groups=torch.tensor(groups))) == pytest.approx(
        float(found)
    )


def test_matching_of_parts_is_the_mean_of_the_whole() -> None:
    g = torch.Generator().manual_seed(1)
    P, Q = torch.rand(2, 6, 5, generator=g, dtype=torch.float64).softmax(2)
    groups = torch.tensor([0, 1, 2, 0, 3, 1])
    parts = [code_matching_loss(P, Q, groups=groups, rows=slice(i, i + 3)) for i in (0, 3)]
    torch.testing.assert_close((parts[0] + parts[1]) / 2, code_matching_loss(P, Q, groups=groups))


def test_when_all_are_alike_matching_guesses() -> None:
    P = torch.full((8, 5), 0.2)
    assert float(code_matching_loss(P, P)) == pytest.approx(math.log(8))
    apart = torch.eye(8)  # where nothing is shared, the logarithm is held at log(1e-10)
    assert float(code_matching_loss(apart, apart)) < 1e-6


# --- the method -----------------------------------------------------------------------------------


@pytest.mark.parametrize("summary", [False, True])
def test_the_loss_is_the_sum_of_its_three_parts(summary: bool) -> None:
    method, batch = small(matching=0.7, commitment=0.3, summary=summary), scenes()
    found = method.loss(batch)
    groups = caption_groups(batch["caption"])
    x, y = (method.embed({m: batch[m]}) for m in ("image", "caption"))
    of = {m: method.ground(batch, m) for m in ("image", "caption")}
    contrastive = clip_loss(x, y, method.logit_scale, groups=groups)
    matching = by_loop(of["image"].shares, of["caption"].shares, groups.tolist())
    held = sum(float(each.commitment.mean()) for each in of.values())
    assert float(found["contrastive"]) == pytest.approx(float(contrastive))
    assert float(found["matching"]) == pytest.approx(matching)
    assert float(found["total"]) == pytest.approx(float(contrastive) + 0.7 * matching + 0.3 * held)


def test_an_embedding_is_the_mean_of_codes() -> None:
    method, batch = small(), scenes()
    for m in ("image", "caption"):
        mixed = F.normalize(method.histogram(batch, m) @ method.codebook, dim=1)
        torch.testing.assert_close(method.embed({m: batch[m]}), mixed)
        real = (batch["caption"] != 0).sum(1) if m == "caption" else torch.full((6,), 4)
        shares = method.histogram(batch, m) * real[:, None]
        torch.testing.assert_close(shares, shares.round())  # whole tokens


def test_a_summary_gets_past_the_codebook() -> None:
    batch = scenes()
    for summary, moved in ((False, False), (True, True)):
        method = small(summary=summary)
        before = method.embed({"image": batch["image"]})
        method.codebook = torch.zeros_like(method.codebook) + method.codebook[0]  # one for all
        after = method.embed({"image": batch["image"]})
        assert not torch.allclose(before, after)
        assert bool((after - after[0]).abs().amax() > 1e-6) is moved


def test_codes_are_running_means_of_their_tokens() -> None:
    method = small(decay=0.5, codebook_size=3, dim=2)
    method.codebook.copy_(torch.tensor([[0.0, 0.0], [4.0, 4.0], [9.0, 9.0]]))
    method.counts.fill_(2.0)
    method.sums.copy_(2 * method.codebook)
    tokens = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]).double()
    method._move(tokens, torch.tensor([0, 0, 1]))
    # counts 2, 1.5 and 1; sums half of the old ones and half of the new
    expected = [[0.5 / 2, 0.5 / 2], [(4 + 2.5) / 1.5] * 2, [9.0, 9.0]]
    torch.testing.assert_close(method.codebook, torch.tensor(expected).double())


def test_codes_that_nobody_chooses_move_to_tokens() -> None:
    method = small(codebook_size=4, dim=2)
    tokens = torch.arange(12.0).view(6, 2).double()
    method.codebook.copy_(torch.full((4, 2), 50.0))
    method.codebook[0] = 3.0
    method._move(tokens, torch.zeros(6, dtype=torch.int64))
    assert method.counts[1:].eq(1).all()
    moved = [row.tolist() for row in method.codebook[1:]]
    assert moved == [tokens[i].tolist() for i in (0, 2, 4)]


def test_codes_move_in_training_only() -> None:
    method, batch = small(), scenes()
    before = method.codebook.clone()
    method.eval()
    method.loss(batch)
    method.after_step()
    assert torch.equal(method.codebook, before)
    method.train()
    method.loss(batch)
    method.after_step()
    assert not torch.equal(method.codebook, before)
    assert not method._chosen


def test_in_the_warmup_tokens_stay_as_they_are_and_codes_follow() -> None:
    method, batch = small(warmup=2), scenes()
    before = method.codebook.clone()
    for step in range(3):
        of = {}
        for m in ("image", "caption"):
            tokens, mask, _ = method._tokens(batch, m)
            used = tokens if step < 2 else method.ground(batch, m).tokens
            real = mask.double()[:, :, None]
            of[m] = F.normalize((used * real).sum(1) / real.sum(1), dim=1)
        groups = caption_groups(batch["caption"])
        expected = clip_loss(of["image"], of["caption"], method.logit_scale, groups=groups)
        torch.testing.assert_close(method.loss(batch)["contrastive"], expected.detach())
        method.after_step()
    assert not torch.equal(method.codebook, before)


def test_training_lowers_the_loss() -> None:
    data = ShapesCaptions(64, size=24, detail=2, objects=(1, 1), sentences=1, seed=1)
    torch.manual_seed(0)
    encoders = ImageEncoder(size=24, width=32), CaptionEncoder(len(data.tokenizer), width=32)
    method = CodeCLIP(*encoders, codebook_size=32, dim=16, warmup=16)
    batch = data.batch(range(64))
    before = method.eval().loss(batch)
    fit(method, data, epochs=12, batch_size=32, lr=5e-3, progress=False)
    after = method.eval().loss(batch)
    for name in ("total", "contrastive", "matching"):
        assert after[name] < before[name]


def test_errors_say_what_was_expected() -> None:
    tokens, codebook, mask = some()
    with pytest.raises(ShapeError, match=r"\[3, 4, 2\] and \[5, 1\]"):
        quantise(tokens, codebook[:, :1], mask)
    with pytest.raises(ShapeError, match="a mask bool"):
        quantise(tokens, codebook, mask[:, :2])
    with pytest.raises(ShapeError, match="B at least 2"):
        code_matching_loss(torch.ones(1, 3), torch.ones(1, 3))
    for bad in ({"codebook_size": 1}, {"decay": 1.0}, {"matching": -1.0}):
        with pytest.raises(MMCLError, match=f"{next(iter(bad))} must be"):
            small(**bad)
    method, batch = small(), scenes()
    with pytest.raises(MissingModalityError, match="got 'tags'"):
        method.ground(batch, "tags")
    with pytest.raises(MissingModalityError, match="image not in the batch"):
        method.loss({"caption": batch["caption"]})
