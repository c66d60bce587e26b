"""The methods, one file each, to be read beside its paper."""

from mmcl_core.methods.clip import CLIP
from mmcl_core.methods.fdt import FDT
from mmcl_core.methods.fusion import LateFusion
from mmcl_core.methods.gmc import GMC
from mmcl_core.methods.mct import MCT
from mmcl_core.methods.method import Method
from mmcl_core.methods.moco import MoCo
from mmcl_core.methods.siglip import SigLIP

__all__ = ["CLIP", "FDT", "GMC", "MCT", "LateFusion", "Method", "MoCo", "SigLIP"]
