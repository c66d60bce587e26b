"""Draw the picture of the README: python tools/readme_picture.py"""

from pathlib import Path

from mmcl_core import figures
from mmcl_core.data import ShapesCaptions

lab = ShapesCaptions(1)
figure = figures.scenes(
    [lab.images[0]] * 4,
    [lab.with_detail(detail).text(0, sentence=2) for detail in (1, 2, 3, 4)],
    title="The picture always shows more than its caption says",
    columns=4,
)
figure.savefig(Path(__file__).parent.parent / "book" / "_static" / "readme.png", dpi=110)
