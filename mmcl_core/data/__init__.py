"""Data: the laboratory of shapes, emoji, folders of captioned pictures, words to numbers, views."""

from mmcl_core.data.captions import CaptionFolder
from mmcl_core.data.emoji import Emoji
from mmcl_core.data.pictures import PictureFolder
from mmcl_core.data.shapes import ShapesCaptions
from mmcl_core.data.tokenizer import WordTokenizer

__all__ = ["CaptionFolder", "Emoji", "PictureFolder", "ShapesCaptions", "WordTokenizer"]
