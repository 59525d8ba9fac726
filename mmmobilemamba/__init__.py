"""MobileMamba for MMDetection and MMSegmentation; importing the package registers its modules."""

from .backbones import MobileMamba
from .compat import find_mmseg_configs
from .necks import EfficientViTFPN
from .safe_load import allow_mmengine_checkpoints
from .version import __version__

__all__ = ['EfficientViTFPN', 'MobileMamba', '__version__']

allow_mmengine_checkpoints()
find_mmseg_configs()
