"""Methods that one chapter compares, and none of the three answers needs."""

from mmcl_book.methods.codes import CodeCLIP
from mmcl_book.methods.fdt_gmc import FDTGMC
from mmcl_book.methods.moco_clip import MoCoCLIP
from mmcl_book.methods.vae import MMVAE, MVAE

__all__ = ["FDTGMC", "MMVAE", "MVAE", "CodeCLIP", "MoCoCLIP"]
