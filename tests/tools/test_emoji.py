"""What tools/emoji.py has decided: which concepts, in which part, by which names."""

import base64
import hashlib
import json
import re
import subprocess

import emoji as tool
import pytest

from mmcl_core.data import emoji
from tests import ROOT

CONCEPTS = json.loads((emoji.FOLDER / "emoji.json").read_text(encoding="utf-8"))["concepts"]


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("left arrow", "arrow"),
        ("up-right arrow", "arrow"),
        ("red heart", "red heart"),
        ("woman dancing", "dancing"),
        ("old man", "old"),
        ("woman", "person"),
        ("leftwards pushing hand", "pushing hand"),
        ("man’s shoe", "s shoe"),
        ("four o’clock", "clock"),
        ("ten-thirty", "clock"),
    ],
)
def test_what_only_looks_another_way_has_one_base(name: str, base: str) -> None:
    assert tool.base(name) == base


def test_twins_are_found() -> None:
    names = {"artist", "person running", "person: red hair", "man", "person", "people wrestling"}
    for name in ("man artist", "woman running", "man: red hair", "men wrestling"):
        assert tool.is_twin(name, "1F468", names), name
    for name in ("man", "woman’s hat", "old man", "artist"):
        assert not tool.is_twin(name, "1F468", names), name
    assert tool.is_twin("mermaid", "1F9DC-200D-2640-FE0F", names)
    assert tool.is_twin("person running: facing right", "1F3C3-200D-27A1-FE0F", names)


def test_a_part_is_drawn_by_the_base_name() -> None:
    drawn = [tool.part(str(i)) for i in range(5000)]
    assert drawn.count("test") / 5000 == pytest.approx(0.2, abs=0.02)
    assert drawn.count("validation") / 5000 == pytest.approx(0.1, abs=0.02)
    for concept in CONCEPTS:
        assert concept["base"] == tool.base(concept["en"][0])
        assert concept["part"] == tool.part(concept["base"])


def test_names_of_pictures() -> None:
    assert tool.slug("man’s shoe") == "mans-shoe"
    assert tool.slug("piñata") == "pinata"
    assert tool.slug("A button (blood type)") == "a-button-blood-type"
    assert tool.plain("2764-FE0F") == "2764"


def test_pictures_are_found_by_code_or_by_a_name_of_before() -> None:
    kept = [{"emoji": "🤖", "en": ["robot"]}, {"emoji": "🦗", "en": ["cricket"]}]
    of = {"icons": {"robot": {}, "robot-face": {}, "cricket": {}}}
    aliases = {"aliases": {"robot-face": {"parent": "robot"}}}
    sets = {
        "noto": ({**of, **aliases}, {"1f916": "robot", "1f997": "cricket"}),
        "emojione": ({"icons": {"robot-face": {}, "cricket": {}}}, {}),
        "noto_v1": ({"icons": {}}, {}),
    }
    found = tool.find(kept, sets)
    assert found == {
        "noto": ["robot", "cricket"],
        "emojione": ["robot-face", None],  # its cricket is the game
        "noto_v1": [None, None],
    }


def test_another_package_than_that_of_the_sum_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def pack(command: list[str], **_: object) -> subprocess.CompletedProcess:
        folder = command[command.index("--pack-destination") + 1]
        (tool.Path(folder) / "x.tgz").write_bytes(b"another")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(tool.subprocess, "run", pack)
    with pytest.raises(SystemExit, match="x@1: expected the sha512 abc, got"):
        tool.fetch("x@1", "abc", "icons.json")


def test_each_package_has_a_version_and_a_sum() -> None:
    for package, integrity in (*tool.STYLES.values(), tool.WORDS):
        assert re.fullmatch(r"[@\w/-]+@\d+\.\d+\.\d+", package)
        assert len(base64.b64decode(integrity)) == hashlib.sha512().digest_size
    assert tuple(sorted(tool.STYLES)) == tuple(sorted(emoji.STYLES))


def test_the_notice_names_each_file_and_has_each_licence() -> None:
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for path in emoji.FOLDER.iterdir():
        assert path.name in notice
    for words in (
        "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION",
        "Section 8 -- Interpretation.",
        "The above copyright notice and this permission notice shall be included",
        "UNICODE LICENSE V3",
    ):
        assert words in notice
