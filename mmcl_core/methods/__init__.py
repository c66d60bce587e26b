"""The methods, one file each, to be read beside its paper."""

from mmcl_core.methods.clip import CLIP
from mmcl_core.methods.codes import CodeCLIP
from mmcl_core.methods.fdt import FDT
from mmcl_core.methods.fdt_gmc import FDTGMC
from mmcl_core.methods.fusion import LateFusion
from mmcl_core.methods.gmc import GMC
from mmcl_core.methods.mct import MCT
from mmcl_core.methods.moco import MoCo
from mmcl_core.methods.moco_clip import MoCoCLIP
from mmcl_core.methods.siglip import SigLIP
from mmcl_core.methods.vae import MMVAE, MVAE

__all__ = [
    "CLIP",
    "FDT",
    "FDTGMC",
    "GMC",
    "MCT",
    "MMVAE",
    "MVAE",
    "CodeCLIP",
    "LateFusion",
    "MoCo",
    "MoCoCLIP",
    "SigLIP",
]
