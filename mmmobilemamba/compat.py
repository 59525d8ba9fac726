"""What the maintained forks of the OpenMMLab packages (``onedl-*``) need."""

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

from mmengine.config import utils


def find_mmseg_configs() -> None:
    """Let ``_base_ = 'mmseg::…'`` find an MMSegmentation that was installed under another name.

    MMEngine asks for the distribution ``mmsegmentation``; the fork is ``onedl-mmsegmentation``.
    """
    names = utils.MODULE2PACKAGE
    try:
        distribution(names['mmseg'])
    except PackageNotFoundError:
        if find_spec('mmseg') is not None:
            names['mmseg'] = 'mmseg'
