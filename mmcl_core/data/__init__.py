"""Data: the shapes laboratory, handwritten digits, folders of captioned pictures, words to numbers,
augmentation.
"""

from mmcl_core.data.captions import CaptionFolder
from mmcl_core.data.digits import Digits
from mmcl_core.data.pictures import PictureFolder
from mmcl_core.data.shapes import ShapesCaptions
from mmcl_core.data.tokenizer import WordTokenizer

__all__ = ["CaptionFolder", "Digits", "PictureFolder", "ShapesCaptions", "WordTokenizer"]
