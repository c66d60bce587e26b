"""Models that answer in the page: the reader composes a scene or writes a sentence.

`model.js` is the forward pass, `draw.js` draws the laboratory's scenes, `view.js` is what is seen
and moved, `circle.js` the circle of the first chapter. No library, no build step: a model of a
chapter has less than half a million numbers, and a browser computes it in milliseconds.
"""

from mmcl_book.live.circle import circle as circle
from mmcl_book.live.figure import Guess as Guess
from mmcl_book.live.figure import Live as Live
from mmcl_book.live.figure import live as live
from mmcl_book.live.packing import class_probe as class_probe
