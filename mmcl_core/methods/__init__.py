"""The methods, one file each, to be read beside its paper."""

from mmcl_core.methods.clip import CLIP

__all__ = ["CLIP"]
