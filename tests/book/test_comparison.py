"""What the page of the comparison defines: its loop is the library; its checks say what fails."""

import pytest
import torch

from tests.book.chapter import definitions
from tests.mmcl_book.methods.test_comparison_methods import build, scenes

PAGE = "synthesis/comparison"


def test_joint_mixtures_of_the_page_are_the_library_s() -> None:
    from mmcl_book.methods import FDTGMC

    method, batch = build(FDTGMC, grounding_temperature=2.0), scenes()
    with torch.no_grad():
        queries = []
        for name in ("image", "caption"):
            encoded = method.encoders[name](batch[name])
            real = [x[m] for x, m in zip(encoded.tokens, encoded.mask, strict=True)]
            queries.append([method.heads[name].query(x) for x in real])
        by_hand = definitions(PAGE)["joint_mixtures"](*queries, method.codebook, 2.0)
        joint = method.embed({name: batch[name] for name in ("image", "caption")})
    torch.testing.assert_close(by_hand, joint)


def test_what_is_apart() -> None:
    page = definitions(PAGE)
    check = page["check_apart"]
    assert check(page["best_apart"]) == "not answered yet"
    assert check(page["apart_by_ends"]) == "right"
    assert check(lambda found: max(found, key=lambda n: found[n][0])).startswith("overlap: ")
    assert check(lambda found: None).startswith("apart: expected a")
    second = "one of three overlaps: expected None, you say a"
    assert check(_apart_from_the_last_but_one) == second
    assert check(lambda found: page["apart_by_ends"](found) and "a") == (
        "the last is best: expected b, you say a"
    )


def _apart_from_the_last_but_one(found):
    """Asks one other only."""
    best, other = list(found)[:2]
    if found[best][0] < found[other][0]:
        best, other = other, best
    return best if found[best][1] > found[other][2] else None


def test_what_finds_itself() -> None:
    page = definitions(PAGE)
    check, eye = page["check_parted"], torch.eye(8)
    assert check(page["parted"]) == "not answered yet"
    assert check(lambda: (eye[:4], eye[4:])) == "right"
    assert check(lambda: (eye[:4].tolist(), eye[4:].tolist())) == "right"
    assert "a cosine of 1.00" in check(lambda: (eye[:4], eye[:4]))
    assert "expected [4, 8] twice" in check(lambda: (eye[:4, :4], eye[4:]))
    assert "length 1" in check(lambda: (2 * eye[:4], eye[4:]))
    one = eye[[0, 0, 0, 0]]
    assert "too near" in check(lambda: (one, eye[4:]))


def test_weights_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    page = definitions(PAGE)
    places = {"find": [1.0, 0.9, 0.0], "point": [0.2, 1.0, 0.1]}
    monkeypatch.setitem(page, "methods", ["CLIP", "FDT", "GMC"])
    monkeypatch.setitem(page, "problems", places)
    monkeypatch.setitem(page, "places", places.get)
    check, only = page["check_weights"], {"find": {"find": 2}, "point": {"point": 1}}
    assert check(page["weights"]) == "not answered yet"
    assert check(lambda: {"FDT": only["point"], "CLIP": only["find"]}) == "right"
    assert page["ranking"]({"find": 1, "point": 1}) == ["FDT", "CLIP", "GMC"]
    assert check(lambda: {"FDT": only["find"]}) == (
        "FDT should be first; your order: CLIP, FDT, GMC"
    )
    assert "no problem ['speed']" in check(lambda: {"FDT": {"speed": 1}})
    for bad in ({"find": -1, "point": 2}, {"find": 0}):
        assert "0 or more each" in check(lambda bad=bad: {"FDT": bad})
