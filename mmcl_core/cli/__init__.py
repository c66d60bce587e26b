"""The command line, `python -m mmcl_core`, and what its runs are good for in Python.

Finding pictures by words, as `embed` and `search` do it::

    from mmcl_core.cli import load_run
    from mmcl_core.data import PictureFolder
    from mmcl_core.evaluation import embed_all

    run = load_run("runs/clip")                                # the --out of train
    pictures = PictureFolder("photos", size=run.size)
    image = embed_all(run.method, pictures, ("image",))        # [N, D], unit vectors
    words = run.tokenizer.encode_batch(["a red star"])
    query = embed_all(run.method, {"caption": words}, ("caption",))
    for i in (image @ query[0]).topk(5).indices:               # the cosine
        print(pictures.names[i])

The methods are those of one registry, `mmcl_core.cli.registry`.
"""

from mmcl_core.cli.embed import PictureIndex, embed_folder
from mmcl_core.cli.runs import TrainedRun, load_run
from mmcl_core.cli.search import embed_picture, embed_words, nearest, unknown_words

__all__ = [
    "PictureIndex",
    "TrainedRun",
    "embed_folder",
    "embed_picture",
    "embed_words",
    "load_run",
    "nearest",
    "unknown_words",
]
