"""Multimodal contrastive learning: the library under the book *Closing the Gap*.

What stands on which floor: `[tool.importlinter]` in `pyproject.toml`. What makes the pages of the
book is another package, `mmcl_book`. `import mmcl_core` alone loads nothing, so it costs nothing.
"""

__version__ = "0.1.0"
