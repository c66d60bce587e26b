"""What `python -m mmcl_core evaluate` prints: a title, the names of the columns, and the rows."""

from collections.abc import Callable

from mmcl_core.cli.runs import Run
from mmcl_core.data.drawing import ATTRIBUTES
from mmcl_core.data.shapes import NAMED_AT_DETAIL

Table = tuple[str, list[str], dict[str, list[str]]]

NAMES = {
    "image": "pictures",
    "caption": "captions",
    "image_to_caption": "picture to caption",
    "caption_to_image": "caption to picture",
}


def _recall_table(run: Run, values: dict[str, float]) -> Table:
    columns: dict[str, None] = {}  # an ordered set
    rows: dict[str, list[str]] = {}
    for key, value in values.items():
        name, _, k = key.partition("@")
        columns[f"@{k}"] = None
        rows.setdefault(NAMES.get(name, name), []).append(f"{value:.3f}")
    return "recall", list(columns), rows


def _codebook_table(run: Run, values: dict[str, float]) -> Table:
    columns = {"active": ".1f", "used": ".0f", "perplexity": ".1f"}
    rows = {
        NAMES[m]: [format(values[f"{m}_{c}"], form) for c, form in columns.items()]
        for m in ("image", "caption")
    }
    return "tokens", ["active in one", "used in all", "perplexity"], rows


def _probes_table(run: Run, values: dict[str, float]) -> Table:
    # MoCo is trained without captions.
    told = () if run.method == "moco" else NAMED_AT_DETAIL[run.detail or 0]
    rows = {
        name: [
            f"{values[name]:.3f}",
            f"{values[f'{name}_chance']:.3f}",
            "yes" if name in told else "no",
        ]
        for name in ATTRIBUTES
    }
    return "read from pictures", ["accuracy", "chance", "told by captions in training"], rows


def _accuracy_table(run: Run, values: dict[str, float]) -> Table:
    rows = {name: [f"{value:.3f}"] for name, value in values.items()}
    return "shape and colour together, told from", ["accuracy"], rows


TABLES: dict[str, Callable[[Run, dict[str, float]], Table]] = {
    "recall": _recall_table,
    "codebook": _codebook_table,
    "probes": _probes_table,
    "accuracy": _accuracy_table,
}


def print_table(columns: list[str], rows: dict[str, list[str]]) -> None:
    first = max(map(len, rows))
    for name, cells in [("", columns), *rows.items()]:
        aligned = (f"{cell:>{max(6, len(c))}}" for cell, c in zip(cells, columns, strict=True))
        print(f"  {name:{first}}  {'  '.join(aligned)}")
