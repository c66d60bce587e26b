"""Data: the shapes laboratory, folders of captioned pictures, words to numbers, augmentation."""

from mmcl_core.data.captions import CaptionFolder
from mmcl_core.data.shapes import ShapesCaptions
from mmcl_core.data.tokenizer import WordTokenizer

__all__ = ["CaptionFolder", "ShapesCaptions", "WordTokenizer"]
