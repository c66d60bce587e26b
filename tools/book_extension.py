"""What the book needs of Sphinx and `_config.yml` cannot say, so it is ours. Loaded by it.

- JavaScript from the book itself when `tools/vendor.py` has fetched it, else from the CDN.
- A cache of executed pages that knows the library: jupyter-cache compares only the text of the
  cells, so a changed `mmcl_core` would keep old output.
- Chapters executed several at a time, before Sphinx reads the pages one by one.
- The text of each page before its scripts (`tools/text_first.py`).
- Under each widget its first frame, for readers of paper and without JavaScript.
- The seconds of each chapter, written to `_build/seconds.json` for `tools/build.py` to print.
"""

import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from docutils import nodes
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import single_nb_execution
from myst_nb.core.read import is_myst_markdown_notebook, read_myst_markdown_notebook
from myst_nb.core.render import WIDGET_VIEW_MIMETYPE
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from text_first import text_first

from mmcl_book.claims import ClaimFailedError

ROOT = Path(__file__).resolve().parent.parent
EXTRA = ROOT / "book" / "_extra"
# So many chapters are executed at a time, each with one thread: two processes of one thread do more
# than one of two.
AT_A_TIME = min(4, os.cpu_count() or 1)
# Where require.js, and so the html-manager, which asks for fonts, looks for files.
REQUIRE_BASE = 'var require = {baseUrl: document.documentElement.dataset.content_root + "vendor/"};'


def library_hash(root: Path = ROOT) -> str:
    """A short hash of everything besides a chapter's cells that its output depends on."""
    files = [
        root / "requirements.txt",
        *sorted((root / "mmcl_core").rglob("*.py")),
        *sorted((root / "mmcl_book").rglob("*.py")),
        *sorted((root / "mmcl_book").rglob("*.js")),
        *sorted((root / "mmcl_book").rglob("*.css")),
        *sorted((root / "book" / "records").rglob("*.json")),
    ]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(root).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def site_address(root: Path = ROOT) -> str:
    """Where GitHub Pages shows the book: follows from the repository, named in `_config.yml`."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    owner, name = config["repository"]["url"].rstrip("/").split("/")[-2:]
    return f"https://{owner.lower()}.github.io/{name}/"


def configure(app: Sphinx, config: Any) -> None:
    """Point Sphinx to the cache of this library, and to the vendored files if they are complete."""
    build = Path(app.outdir).parent
    config.nb_execution_cache_path = str(build / "executed" / library_hash())
    if (EXTRA / "vendor" / "complete.txt").exists():
        config.html_extra_path = [str(EXTRA)]
        # Sphinx takes these paths as relative to the book's _static folder.
        config.mathjax_path = "../vendor/mathjax/tex-mml-chtml.js"
        config.nb_ipywidgets_js = {
            # Written into the page, before the others.
            "": {"body": REQUIRE_BASE},
            "../vendor/require.js": {},
            "../vendor/@jupyter-widgets/html-manager/dist/embed-amd.js": {
                "data-jupyter-widgets-cdn": "vendor/"
            },
        }


def execute_chapters(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    """Execute the chapters that the cache does not have, so that reading them finds all there.

    Each is executed, whatever becomes of the others.

    Raises:
        SystemExit: some failed; all that failed is printed, a line for each claim or error. It is
            not one of Sphinx's errors, which end in three tracebacks of Sphinx itself.
    """
    cache = get_cache(app.config.nb_execution_cache_path)
    parsing: Any = env
    todo = {}
    for name in docnames:
        path = Path(env.doc2path(name))
        text = path.read_text(encoding="utf-8")
        if is_myst_markdown_notebook(text):
            notebook = read_myst_markdown_notebook(
                text, config=parsing.myst_config, add_source_map=True, path=path
            )
            try:
                cache.match_cache_notebook(notebook)
            except KeyError:
                todo[name] = path, notebook

    def execute(name: str) -> Any:
        path, notebook = todo[name]
        print(f"  executing {name}\n", end="", flush=True)  # in one go: there are several threads
        timeout = app.config.nb_execution_timeout
        try:
            return single_nb_execution(notebook, str(path.parent), timeout, allow_errors=False)
        except Exception as error:  # as of a kernel that died: the other chapters go on
            return SimpleNamespace(err=error)

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the kernels; this process computes nothing
    failed = []
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for name, result in zip(todo, pool.map(execute, todo), strict=True):
            if result.err:
                failed.append(told(name, result.err))
                continue
            path, notebook = todo[name]
            bundle = CacheBundleIn(notebook, str(path), data={"execution_seconds": result.time})
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
    if failed:
        print(f"\n{len(failed)} of {len(todo)} executed chapters failed:", file=sys.stderr)
        sys.exit("\n".join(line for lines in failed for line in lines))


def told(chapter: str, error: Exception) -> list[str]:
    """A line for each claim that failed; else one for the error, after its traceback is printed."""
    kind, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    if kind == ClaimFailedError.__name__:
        return [f"{chapter}: {line}" for line in text.splitlines()]
    print(f"{chapter}: {error}", file=sys.stderr, flush=True)
    return [f"{chapter}: {kind}: {([*text.strip().splitlines(), ''])[0]}"]


def write_seconds(app: Sphinx, exception: Exception | None) -> None:
    """Write {page: seconds of its execution} beside the built pages."""
    if exception:
        return
    known: dict[str, Any] = getattr(app.env, "nb_metadata", {})
    # What myst-nb knows of each page; empty for a page without code.
    executions = {page: data.get("exec_data") for page, data in known.items()}
    seconds = {page: data["runtime"] for page, data in executions.items() if data}
    path = Path(app.outdir).parent / "seconds.json"
    path.write_text(json.dumps(seconds, indent=1, sort_keys=True))


def put_text_first(app: Sphinx, exception: Exception | None) -> None:
    """Reorder every page that was written; one that was reordered before stays as it is."""
    if exception or app.builder.name != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        page.write_text(text_first(page.read_text(encoding="utf-8")), encoding="utf-8")


def ask_the_registry(app: Sphinx, address: str) -> str | None:
    """For a DOI, let linkcheck ask the registry of DOIs: publishers turn robots away."""
    resolver = "https://doi.org/"
    if address.startswith(resolver):
        return address.replace(resolver, resolver + "api/handles/", 1)
    return None


class KeepStillFrame(SphinxPostTransform):
    """Put a widget's plain HTML behind it: myst-nb would choose the widget alone.

    The style sheet shows it where the widget is not drawn.
    """

    default_priority = 3  # just before myst-nb's choice of one form for each output

    def run(self, **kwargs: Any) -> None:
        """Append the children of `text/html` to those of the widget's view."""
        for bundle in self.document.findall(nodes.container):
            if bundle.get("nb_element") == "mime_bundle":
                forms = {form["mime_type"]: form for form in bundle.children}
                if WIDGET_VIEW_MIMETYPE in forms and "text/html" in forms:
                    forms[WIDGET_VIEW_MIMETYPE].extend(forms["text/html"].children)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to Sphinx's events."""
    app.connect("config-inited", configure)
    app.connect("env-before-read-docs", execute_chapters)
    app.connect("build-finished", write_seconds)
    app.connect("build-finished", put_text_first)
    app.connect("linkcheck-process-uri", ask_the_registry)
    app.add_post_transform(KeepStillFrame)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
