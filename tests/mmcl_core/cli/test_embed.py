"""`python -m mmcl_core embed`: the vectors, their file, and pictures that cannot be read."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmcl_core import cli
from mmcl_core.cli import embed
from mmcl_core.cli.registry import METHODS
from mmcl_core.data import PictureFolder
from mmcl_core.errors import CheckpointError, DataError, MMCLError, ShapeError
from mmcl_core.evaluation import embed_all
from mmcl_core.methods.fdt import Cooling
from tests.mmcl_core.cli.helpers import trained


@pytest.mark.parametrize("name", [*METHODS, "words"])
def test_the_vectors_are_those_of_the_trained_method(name, run, runs, photos, tmp_path) -> None:
    method, data = trained(runs[name])
    pictures = PictureFolder(photos, size=24)
    image = torch.stack([pictures[i]["image"] for i in range(96)])
    expected = F.normalize(embed_all(method, {"image": image}, ("image",)), dim=1)

    out = tmp_path / "new" / "photos.npz"
    code, said, err = run("embed", runs[name], photos, "--out", out, "--batch-size", 40)
    assert code == 0
    assert said == f"96 pictures, vectors of {expected.shape[1]} numbers: {out}\n"
    kind = "fdt" if name == "words" else name
    assert err.startswith(f"{kind}, step ")
    assert "96 pictures on" in err
    assert [path.name for path in out.parent.iterdir()] == ["photos.npz"]

    index = cli.PictureIndex.load(out)
    assert index.names == pictures.names
    assert (index.run, index.pictures) == (runs[name].resolve(), photos.resolve())
    assert index.embeddings.dtype == torch.float32
    torch.testing.assert_close(index.embeddings.norm(dim=1), torch.ones(96))
    torch.testing.assert_close(index.embeddings, expected, rtol=0, atol=1e-5)
    loaded = cli.load_run(runs[name])
    assert (loaded.name, loaded.size, loaded.tokenizer) == (kind, 24, data.tokenizer)
    assert loaded.step == loaded.steps == {"words": 6}.get(name, 4)
    cooling = getattr(loaded.method, "cooling", None)
    assert (cooling is None) == (kind != "fdt")
    assert cooling is None or cooling == Cooling(300.0, 15.0, loaded.steps)

    code, said, err = run("search", out, "--like", photos / "Images" / "7.png", "--top", 1)
    assert (code, err) == (0, "")
    assert said.splitlines()[1] == "   1.000  Images/7.png"
    code, said, err = run("search", out, "a red star", "--json")
    if METHODS[kind].wordless:
        assert code == 2
        assert json.loads(said)["queries"] == []
        assert err.startswith(f"error: {name} ")
        assert "earch by a picture" in err
        return
    assert (code, err) == (0, "")
    caption = data.tokenizer.encode_batch(["a red star"])
    query = F.normalize(embed_all(method, {"caption": caption}, ("caption",)), dim=1)[0]
    [found] = json.loads(said)["queries"]
    assert (found["words"], found["unknown"]) == ("a red star", [])
    best = sorted(zip((expected @ query).tolist(), pictures.names, strict=True), reverse=True)[:5]
    assert [entry["name"] for entry in found["found"]] == [name for _, name in best]
    scores = [entry["score"] for entry in found["found"]]
    assert scores == pytest.approx([score for score, _ in best], abs=1e-5)


# --- files ----------------------------------------------------------------------------------------


def test_unreadable_pictures_stop_it_unless_they_are_skipped(run, runs, photos, tmp_path):
    shutil.copytree(photos / "Images", tmp_path / "in")
    for name in ("5.png", "11.png"):
        (tmp_path / "in" / name).write_bytes(b"not a picture")
    out = tmp_path / "photos.npz"
    arguments = ["embed", runs["clip"], tmp_path / "in", "--out", out, "--batch-size", 10]
    code, said, err = run(*arguments)
    assert (code, said) == (2, "")
    assert "2 of 96 pictures cannot be read: 11.png (" in err
    assert "5.png (" in err
    assert "pass --skip-bad-pictures to" in err
    assert not out.exists()
    code, said, err = run(*arguments, "--skip-bad-pictures")
    assert code == 0
    assert said.startswith("94 pictures, ")
    assert err.count("warning: left out: ") == 2
    index = cli.PictureIndex.load(out)
    assert not {"5.png", "11.png"} & set(index.names)
    whole = PictureFolder(tmp_path / "in", size=24)
    rows = [whole.names.index(name) for name in index.names]
    image = whole.batch(rows)["image"]
    loaded = cli.load_run(runs["clip"])
    expected = embed_all(loaded.method, {"image": image}, ("image",))
    torch.testing.assert_close(index.embeddings, expected, rtol=0, atol=1e-5)

    for path in (tmp_path / "in").iterdir():
        path.write_bytes(b"not a picture")
    code, _, err = run(*arguments, "--skip-bad-pictures")
    assert code == 2
    assert "96 of 96 pictures cannot be read" in err
    assert "91 more\n" in err
    assert len(cli.PictureIndex.load(out).names) == 94  # as it was


def test_what_fails_on_the_way_leaves_the_earlier_file(run, runs, photos, tmp_path, monkeypatch):
    out = tmp_path / "photos.npz"
    assert run("embed", runs["clip"], photos, "--out", out)[0] == 0
    before = out.read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("no space left")

    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        assert run("embed", runs["mct"], photos, "--out", out)[0] == 2
        patch.setattr(embed, "embed_all", stop)
        assert run("embed", runs["mct"], photos, "--out", out)[0] == 130
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_wrong_input_is_told(run, runs, photos, photos_npz, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.npz").write_bytes(photos_npz.read_bytes()[:2000])
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    (tmp_path / "text.npz").write_text("text")
    files = sorted(path.name for path in tmp_path.iterdir())
    out = ["--out", tmp_path / "new.npz"]
    for arguments, said in [
        (["embed", runs["clip"], photos, "--out", tmp_path / "x.pt"], "ends in .npz, got"),
        (["embed", runs["clip"], photos, "--out", tmp_path], "ends in .npz, got"),
        (["embed", runs["clip"], tmp_path / "empty", *out], "expected pictures, names that end"),
        (["embed", runs["clip"], tmp_path / "none", *out], "got no such folder"),
        (["embed", tmp_path / "empty", photos, *out], "found no run.json"),
        (["embed", runs["clip"], photos, *out, "--device", "abacus"], "got abacus"),
        (["search", tmp_path / "none.npz", "red"], "found no such file"),
        (["search", tmp_path / "broken.npz", "red"], "expected a file that embed wrote"),
        (["search", tmp_path / "other.npz", "red"], "expected a file that embed wrote"),
        (["search", tmp_path / "text.npz", "red"], "expected a file that embed wrote"),
        (["search", photos_npz, "red", "--top", "0"], "at least 1 and below 2^32; got '0'"),
    ]:
        code, printed, err = run(*arguments)
        assert (code, printed) == (2, ""), arguments
        assert said in " ".join(err.split())
        assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_the_functions_say_what_they_need(runs, photos, tmp_path) -> None:
    loaded = cli.load_run(runs["clip"])
    with pytest.raises(ShapeError, match="size 24, as in the training; got 32"):
        cli.embed_folder(loaded, PictureFolder(photos, size=32))
    with pytest.raises(DataError, match="cannot be read"):
        cli.embed_picture(loaded, tmp_path / "none.png")
    with pytest.raises(MMCLError, match="got none in 'zebra'"):
        cli.embed_words(loaded, "zebra")
    with pytest.raises(DataError, match="at most 62 words, got 70"):
        cli.embed_words(loaded, "red " * 70)
    # Bug-report 23's kind: no count that is silently taken for another one.
    with pytest.raises(MMCLError, match="batch_size must be a whole number, at least 1; got 0"):
        cli.embed_folder(loaded, PictureFolder(photos, size=24), batch_size=0)
    index = cli.embed_folder(loaded, PictureFolder(photos, size=24))[0]
    assert len(cli.nearest(index, index.embeddings[0], np.int64(3))) == 3
    for top in (0, -1):
        with pytest.raises(MMCLError, match=f"top must be a whole number, at least 1; got {top}"):
            cli.nearest(index, index.embeddings[0], top)
    shutil.copytree(runs["clip"], tmp_path / "run")
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cut short"):
        cli.load_run(tmp_path / "run")


def test_names_of_any_bytes_come_back(tmp_path) -> None:
    names = ["원.png", "a b.png", "\udcff.png"]  # the last is not UTF-8
    rows = F.normalize(torch.eye(3))
    cli.PictureIndex(Path("r"), "", Path("p"), names, rows).save(tmp_path / "x.npz")
    loaded = cli.PictureIndex.load(tmp_path / "x.npz")
    assert loaded.names == names
    assert torch.equal(loaded.embeddings, rows)
