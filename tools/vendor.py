"""Fetch the scripts and the font that the pages need, so that they ask no other host for anything.

    python tools/vendor.py

npm fetches what `package.json` names and checks it against the sums of `package-lock.json`; the
files that the pages load are copied to `book/_extra/vendor/`, which Sphinx copies into the book.
Third-party files are never committed. Without npm the book loads the same files from their public
address, and this script says so.

The lock file is short on purpose: html-manager carries all it needs in one file, and without its
130 dependencies nothing else is fetched. To take another version of a package, change it in both
files, with the sum that `npm view NAME@VERSION dist.integrity` prints.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

from mmcl_core.files import new_folder

TOOLS = Path(__file__).resolve().parent
VENDOR = TOOLS.parent / "book" / "_extra" / "vendor"
HTML_MANAGER = "@jupyter-widgets/html-manager/dist"
# A file or folder of a package, and its place.
FILES = {
    "mathjax/es5/tex-mml-chtml.js": "mathjax/tex-mml-chtml.js",
    # What tex-mml-chtml.js asks for when a formula or the reader's menu needs it.
    "mathjax/es5/output/chtml/fonts/woff-v2": "mathjax/output/chtml/fonts/woff-v2",
    "mathjax/es5/input/tex/extensions": "mathjax/input/tex/extensions",
    "mathjax/es5/a11y": "mathjax/a11y",
    "mathjax/es5/sre/mathmaps/base.json": "mathjax/sre/mathmaps/base.json",
    "mathjax/es5/sre/mathmaps/en.json": "mathjax/sre/mathmaps/en.json",
    "requirejs/require.js": "require.js",
    f"{HTML_MANAGER}/embed-amd.js": f"{HTML_MANAGER}/embed-amd.js",
    # The icon fonts (regular, solid, brands) that its style sheet asks for.
    f"{HTML_MANAGER}/1551f4f60c37af51121f.woff2": f"{HTML_MANAGER}/1551f4f60c37af51121f.woff2",
    f"{HTML_MANAGER}/7a3337626410ca2f4071.woff2": f"{HTML_MANAGER}/7a3337626410ca2f4071.woff2",
    f"{HTML_MANAGER}/d878b0a6a1144760244f.woff2": f"{HTML_MANAGER}/d878b0a6a1144760244f.woff2",
    # For the glossary's Korean, where the machine that shows or prints it has no font of its own.
    "@fontsource/gowun-dodum/files/gowun-dodum-korean-400-normal.woff2": "gowun-dodum/korean.woff2",
    "@fontsource/gowun-dodum/LICENSE": "gowun-dodum/LICENSE",
}
NPM_CI = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--logs-max=0"]


def vendor(target: Path = VENDOR, packages: Path = TOOLS) -> bool:
    """Fill `target`; True when it is complete, False when npm is missing or reaches nothing.

    Raises:
        SystemExit: a package has another sum than the lock file says.
    """
    stamp = target / "complete.txt"
    wanted = f"{(packages / 'package-lock.json').read_text(encoding='utf-8')}\n{FILES}"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return True
    shutil.rmtree(target, ignore_errors=True)
    if failure := _fetch(target, packages, wanted):
        print(
            f"{failure}: MathJax, require.js and the widgets' html-manager are not served by the "
            "book itself.\nIts pages will load them from a public CDN, so formulas and widgets "
            "need a connection. Install Node.js with npm and run the command again for a book "
            "that works offline."
        )
    return not failure


def _fetch(target: Path, packages: Path, stamp: str) -> str:
    """Fill the folder `target`, whole or not at all; returns why that failed, or nothing."""
    if not (npm := shutil.which("npm")):
        return "npm was not found"
    with tempfile.TemporaryDirectory() as folder:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(packages / name, folder)
        done = subprocess.run([npm, *NPM_CI], cwd=folder, capture_output=True, text=True)
        if "EINTEGRITY" in done.stderr:
            raise SystemExit(
                f"{done.stderr.strip()}\nWhat npm fetched is not what tools/package-lock.json "
                "names; nothing of it was used. Fetch again; if it stays so, do not trust it."
            )
        if done.returncode:
            return f"npm failed ({(done.stderr.strip() or 'it printed nothing').splitlines()[0]})"
        with new_folder(target) as part:
            for source, place in FILES.items():
                found = Path(folder, "node_modules", source)
                (part / place).parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if found.is_dir() else shutil.copyfile)(found, part / place)
            (part / "complete.txt").write_text(stamp, encoding="utf-8")
    return ""


if __name__ == "__main__":
    vendor()
