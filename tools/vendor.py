"""Fetch the scripts and the font that the pages need, so that they ask no other host for anything.

    python tools/vendor.py

npm fetches four packages at pinned versions; their hashes are checked; the files that the pages
load are unpacked to `book/_extra/vendor/`, which Sphinx copies into the book. Third-party files
are never committed. Without npm the book loads the same files from their public address, and this
script says so.
"""

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
VENDOR = ROOT / "book" / "_extra" / "vendor"
HTML_MANAGER = "@jupyter-widgets/html-manager/dist"


@dataclass(frozen=True)
class Package:
    """One npm package: `sha512` is the hash of its archive, `files` maps what we take to its place.

    A key that ends with "/" takes all files in and under that folder.
    """

    name: str
    version: str
    sha512: str
    files: dict[str, str]


PACKAGES = [
    Package(
        "mathjax",
        "3.2.2",
        "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
        {
            "es5/tex-mml-chtml.js": "mathjax/tex-mml-chtml.js",
            # What tex-mml-chtml.js asks for when a formula or the reader's menu needs it.
            "es5/output/chtml/fonts/woff-v2/": "mathjax/output/chtml/fonts/woff-v2/",
            "es5/input/tex/extensions/": "mathjax/input/tex/extensions/",
            "es5/a11y/": "mathjax/a11y/",
            "es5/sre/mathmaps/base.json": "mathjax/sre/mathmaps/base.json",
            "es5/sre/mathmaps/en.json": "mathjax/sre/mathmaps/en.json",
        },
    ),
    Package(
        "requirejs",
        "2.3.8",
        "7/cTSLOdYkNBNJcDMWf+luFvMriVm7eYxp4BcFCsAX0wF421Vyce5SXP17c+Jd5otXKGNehIonFlyQXSowL6Mw==",
        {"require.js": "require.js"},
    ),
    Package(
        "@jupyter-widgets/html-manager",
        "1.0.15",
        "5thBIV6ymNgmPVOHvzx+gGy8ZSKmSazhtGw4/c4xJDVzRhG9PTeQsRjF3FUTopvFi//SABeNz1yp47bCrJ3CQA==",
        {
            "dist/embed-amd.js": f"{HTML_MANAGER}/embed-amd.js",
            # The icon fonts (regular, solid, brands) that its style sheet asks for.
            "dist/1551f4f60c37af51121f.woff2": f"{HTML_MANAGER}/1551f4f60c37af51121f.woff2",
            "dist/7a3337626410ca2f4071.woff2": f"{HTML_MANAGER}/7a3337626410ca2f4071.woff2",
            "dist/d878b0a6a1144760244f.woff2": f"{HTML_MANAGER}/d878b0a6a1144760244f.woff2",
        },
    ),
    # For the glossary's Korean, where the machine that shows or prints it has no font of its own.
    Package(
        "@fontsource/gowun-dodum",
        "5.3.0",
        "1ToMkUzML1E0TIpvV81t1geh+1npARWbdTPwCDZZwqQxD1p/HnngbjOwiXe8Y+gkhlRThyl/HiNgY9fCMpm9OQ==",
        {
            "files/gowun-dodum-korean-400-normal.woff2": "gowun-dodum/korean.woff2",
            "LICENSE": "gowun-dodum/LICENSE",
        },
    ),
]


class HashMismatch(Exception):
    """A fetched archive is not the one that was pinned."""


def check_hash(archive: Path, package: Package) -> None:
    """Raise `HashMismatch` unless the archive has the pinned SHA-512."""
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != package.sha512:
        raise HashMismatch(
            f"{package.name}@{package.version}: expected sha512-{package.sha512}, got "
            f"sha512-{found}. Nothing of it was used. Fetch again; if it stays so, do not trust it."
        )


def target_of(name: str, files: dict[str, str]) -> str | None:
    """Where an archive's file goes, or None if it is not one that we take."""
    for source, target in files.items():
        if source.endswith("/") and name.startswith(source):
            return target + name.removeprefix(source)
        if name == source:
            return target
    return None


def unpack(archive: Path, package: Package, folder: Path) -> None:
    """Write the package's wanted files under `folder`."""
    with tarfile.open(archive) as tar:
        for member in tar:
            # npm puts everything under one folder, "package/".
            inside = PurePosixPath(member.name).relative_to("package").as_posix()
            target = target_of(inside, package.files)
            content = tar.extractfile(member) if target and member.isfile() else None
            if target and content:
                path = folder / target
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())


def fetch(package: Package, folder: Path) -> Path:
    """The package's archive, fetched by npm into `folder`."""
    before = set(folder.iterdir())
    spec = f"{package.name}@{package.version}"
    npm = shutil.which("npm") or "npm"
    subprocess.run(
        [npm, "pack", spec, "--silent", "--pack-destination", str(folder)],
        check=True,
        capture_output=True,
        text=True,
    )
    return (set(folder.iterdir()) - before).pop()


def fingerprint() -> str:
    """What VENDOR holds when it is complete, as text for its stamp."""
    return "\n".join(f"{p.name}@{p.version} {p.sha512} {p.files}" for p in PACKAGES)


def vendor(target: Path = VENDOR) -> bool:
    """Fill `target`; True when it is complete, False when npm is missing or reaches nothing."""
    stamp = target / "complete.txt"
    if stamp.exists() and stamp.read_text() == fingerprint():
        return True
    shutil.rmtree(target, ignore_errors=True)
    if shutil.which("npm"):
        try:
            with tempfile.TemporaryDirectory() as name:
                archives = [fetch(package, Path(name)) for package in PACKAGES]
                # All are checked before anything of one is used.
                for archive, package in zip(archives, PACKAGES, strict=True):
                    check_hash(archive, package)
                for archive, package in zip(archives, PACKAGES, strict=True):
                    unpack(archive, package, target)
            stamp.write_text(fingerprint())
            return True
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines()
            reason = f"npm failed ({lines[-1] if lines else 'it printed nothing'})"
    else:
        reason = "npm was not found"
    print(
        f"{reason}: MathJax, require.js and the widgets' html-manager are not served by the book "
        "itself.\nIts pages will load them from a public CDN, so formulas and widgets need a "
        "connection. Install Node.js with npm and run the command again for a book that works "
        "offline."
    )
    return False


if __name__ == "__main__":
    try:
        vendor()
    except HashMismatch as error:
        sys.exit(str(error))
