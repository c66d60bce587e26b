"""Models beside a record: kept, found, filled in again, and what is wrong with a file told."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mmcl_book.records import RecordError, fetch_weights, read_weights, weights
from mmcl_book.records import making as recording
from mmcl_book.records.making import confirm_record, experiment, make_record, why_stale
from mmcl_book.records.reading import load_record
from mmcl_core.errors import MMCLError
from tests import ROOT
from tests.mmcl_book.records.test_records import edit, fake  # noqa: F401

WITH_WEIGHTS = [
    (name, condition)
    for name in recording.EXPERIMENTS
    for condition in getattr(experiment(name), "WEIGHTS", ())
]
TRAINED = """
import torch
WEIGHTS = ("plain",)
def trained(seed, *, a):
    torch.manual_seed(seed)
    CALLS.with_name("trained.txt").open("a").write(f"{seed}\\n")
    return torch.nn.Linear(2, 1)
"""


class Counted(nn.Module):
    """Weights, a buffer of whole numbers, and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("step", torch.tensor(7))


@pytest.fixture
def record(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "records" / "toy.json"
    path.parent.mkdir()
    path.write_text("{}")
    return path


def test_weights_come_back_as_they_were_up_to_16_bits(record) -> None:
    model = Counted()
    path = weights.keep(record, "20 % of a/b", model, seed=0, code="c")
    assert path.name == "toy-20-of-a-b.safetensors"
    model.step += 1
    again = read_weights("toy", "20 % of a/b", Counted().train())
    assert not again.training
    assert int(again.step) == 7
    assert again.linear.weight.dtype == torch.float32
    torch.testing.assert_close(again.linear.weight, model.linear.weight, rtol=1e-3, atol=1e-6)
    assert weights.made_by(record, "20 % of a/b") == "c"
    before = path.read_bytes()
    weights.keep(record, "20 % of a/b", again, seed=0, code="c")
    assert path.read_bytes() == before  # the same weights, the same bytes


def test_what_cannot_be_kept_is_an_error_and_leaves_nothing(record, monkeypatch) -> None:
    model = Counted()
    monkeypatch.setattr(weights, "LARGEST", 10)
    with pytest.raises(MMCLError, match="at most 10 bytes"):
        weights.keep(record, "a", model, seed=0, code="c")
    model.linear.weight.data[0, 0] = 1e6
    with pytest.raises(MMCLError, match=r"linear.weight: expected numbers that 16 bits hold"):
        weights.keep(record, "a", model, seed=0, code="c")
    assert not weights.file_of(record, "a").parent.exists()


def test_what_is_no_weights_of_the_model_is_told(record) -> None:
    with pytest.raises(RecordError, match=r"toy-a.safetensors; `make records` makes it"):
        read_weights("toy", "a", Counted())
    weights.keep(record, "a", nn.Linear(2, 2), seed=0, code="c")
    with pytest.raises(RecordError, match="expected the weights of such a model"):
        read_weights("toy", "a", Counted())
    weights.file_of(record, "a").write_text("<html>Not found</html>")
    with pytest.raises(RecordError, match="expected weights, found something else"):
        read_weights("toy", "a", Counted())


def test_a_notebook_alone_fetches_them_once(record, tmp_path, monkeypatch) -> None:
    weights.keep(record, "a", Counted(), seed=0, code="c")
    url = weights.file_of(record, "a").as_uri()
    alone = tmp_path / "alone"
    alone.mkdir()
    monkeypatch.chdir(alone)
    monkeypatch.setattr("mmcl_book.records.weights.find_record", lambda *_: None)
    with pytest.raises(RecordError, match="expected weights"):
        fetch_weights("toy", "a", record.as_uri())
    with pytest.raises(RecordError, match="cannot be fetched"):
        fetch_weights("toy", "a", url + "x")
    assert list(alone.iterdir()) == []
    fetch_weights("toy", "a", url)
    fetch_weights("toy", "a", "http://nothing.invalid")  # they are there
    assert int(read_weights("toy", "a", Counted()).step) == 7


def test_a_record_keeps_its_models_and_trains_none_twice(fake, edit) -> None:  # noqa: F811
    edit("CALLS = ", f"{TRAINED}CALLS = ")
    record = make_record("fake", recording.SEEDS, "out.json", lambda _: None)
    assert record.weights == ["plain"]
    assert why_stale("fake", record) == []
    trained = Path("trained.txt")
    assert trained.read_text() == "0\n"
    make_record("fake", recording.SEEDS, "out.json", lambda _: None)
    assert trained.read_text() == "0\n"
    weights.file_of(Path("out.json"), "plain").unlink()
    make_record("fake", recording.SEEDS, "out.json", lambda _: None)
    assert trained.read_text() == "0\n0\n"
    edit("a / 3", "(a / 3)  *1")
    confirm_record("fake", "out.json", lambda _: None)
    assert trained.read_text() == "0\n0\n"  # the numbers are the same, and so is the model
    record = load_record(Path("out.json"))
    assert weights.made_by(Path("out.json"), "plain") == record.made["code"]
    edit('WEIGHTS = ("plain",)', "WEIGHTS = ()")
    assert why_stale("fake", record) == ["models"]


# --- of the book ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "condition"), WITH_WEIGHTS)
def test_each_model_is_there_and_of_the_code_of_its_record(name: str, condition: str) -> None:
    path = ROOT / "book/records" / f"{name}.json"
    assert weights.made_by(path, condition) == load_record(path).made["code"]


def test_no_model_is_left_over() -> None:
    folder = ROOT / "book/records"
    named = {weights.file_of(folder / f"{name}.json", of) for name, of in WITH_WEIGHTS}
    assert set((folder / "weights").glob("*")) == named
