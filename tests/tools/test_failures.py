"""A build that fails ends in one line for each claim and error, of all chapters together."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import book_extension

from tests import ROOT

CONFIG = f"""\
title: Tiny
only_build_toc_files: true
execute: {{execute_notebooks: cache, timeout: 60, raise_on_error: true}}
sphinx: {{local_extensions: {{book_extension: {ROOT / "tools"}}}}}
"""
CHAPTERS = "[{file: good}, {file: bad}, {file: worse}, {file: broken}]"
TOC = f"{{format: jb-book, root: start, chapters: {CHAPTERS}}}"
CHAPTER = """\
---
jupytext: {{text_representation: {{format_name: myst}}}}
kernelspec: {{display_name: Python 3, language: python, name: python3}}
---
# A chapter

```{{code-cell}} python
{code}
```
"""
GOOD = 'from pathlib import Path\nPath("was_here").touch()'
BAD = """\
from mmcl_book.claims import Claim, check_claims
check_claims([
    Claim("a step is short", "time, ratio", 2.903, usually=1.6),
    Claim("recall is high", "recall@1", 0.25, at_least=0.5),
    Claim("the gap is small", "cosine", 0.75, at_most=0.5),
])"""


def write(book: Path, **chapters: str) -> None:
    for name, code in chapters.items():
        (book / f"{name}.md").write_text(CHAPTER.format(code=f"{code}  # {name}"))


def built(book: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(book), "--quiet"]
    return subprocess.run(command, capture_output=True, text=True)


def test_all_failures_are_listed_together_at_the_end(tmp_path: Path) -> None:
    write(tmp_path, good=GOOD, bad=BAD, worse=BAD.replace("recall is", "order is"), broken="1 / 0")
    (tmp_path / "start.md").write_text("# Tiny\n")
    (tmp_path / "_config.yml").write_text(CONFIG)
    (tmp_path / "_toc.yml").write_text(TOC)
    ended = built(tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-6:] == [
        "3 of 4 executed chapters failed:",
        "bad: recall is high (recall@1): 0.25, claimed ≥ 0.5",
        "bad: the gap is small (cosine): 0.75, claimed ≤ 0.5",
        "broken: ZeroDivisionError: division by zero",
        "worse: order is high (recall@1): 0.25, claimed ≥ 0.5",
        "worse: the gap is small (cosine): 0.75, claimed ≤ 0.5",
    ]
    assert ended.stderr.count("recall is high") == 1
    assert ended.stderr.count("Traceback") == 1  # of the cell that is broken
    assert (tmp_path / "was_here").exists()  # the good one was executed

    write(tmp_path, bad=GOOD, worse=GOOD, broken=GOOD)
    ended = built(tmp_path)
    assert ended.returncode == 0
    assert "failed" not in ended.stderr
    assert ended.stdout.count("executing") == 3  # and not the good one again
    assert (tmp_path / "_build" / "html" / "bad.html").exists()


def test_an_error_without_a_cell_has_its_line_too(capsys) -> None:
    assert book_extension.told("a/b", RuntimeError("Kernel died\nmore")) == [
        "a/b: RuntimeError: Kernel died"
    ]
    assert book_extension.told("a/b", TimeoutError()) == ["a/b: TimeoutError: "]
    claims = SimpleNamespace(ename="ClaimFailedError", evalue="x (m): 1, claimed ≤ 0\ny: 2")
    assert book_extension.told("a/b", claims) == ["a/b: x (m): 1, claimed ≤ 0", "a/b: y: 2"]
