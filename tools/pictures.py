"""Draw the pictures of the README, of the browser's tab and of previews of links.

python tools/pictures.py
"""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import Circle

from mmcl_book import figures
from mmcl_core.data import ShapesCaptions

STATIC = Path(__file__).resolve().parent.parent / "book" / "_static"
BLUE, ORANGE, INK = "#0072b2", "#e69f00", "#1a1a1a"
SOCIAL = (1200, 630)  # pixels, as networks ask for


def draw_readme(path: Path) -> None:
    """One scene with captions from coarse to fine."""
    lab = ShapesCaptions(1)
    figure = figures.scenes(
        [lab.images[0]] * 4,
        [lab.with_detail(detail).text(0, sentence=2) for detail in (1, 2, 3, 4)],
        title="The picture always shows more than its caption says",
        columns=4,
    )
    figure.savefig(path, dpi=110)


def favicon() -> str:
    """Two modalities that overlap, and do not coincide."""
    circle = '  <circle cx="{}" cy="16" r="10" fill="{}" fill-opacity="0.8"/>\n'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">\n'
        + circle.format(12, BLUE)
        + circle.format(20, ORANGE)
        + "</svg>\n"
    )


def draw_social(path: Path) -> None:
    """The card that is shown beside a link to the book."""
    dpi = 100
    figure = plt.figure(figsize=(SOCIAL[0] / dpi, SOCIAL[1] / dpi), dpi=dpi, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, SOCIAL[0]), ylim=(0, SOCIAL[1]))
    axes.axis("off")
    for x, colour in ((230, BLUE), (370, ORANGE)):
        axes.add_patch(Circle((x, 315), 165, color=colour, alpha=0.8, linewidth=0))
    axes.text(590, 390, "Closing the Gap", size=42, weight="bold", color=INK, va="center")
    lines = "Multimodal contrastive learning\nby experiment: MCT, FDT, GMC"
    axes.text(592, 265, lines, size=22, color=INK, va="center", linespacing=1.5)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Write all of them."""
    draw_readme(STATIC / "readme.png")
    (STATIC / "favicon.svg").write_text(favicon(), encoding="utf-8")
    draw_social(STATIC / "social.png")


if __name__ == "__main__":
    main()
