"""Head of SSDLite. It needs mmdet, so only the configs that use it import it."""

from mmdet.models.dense_heads import SSDHead
from mmdet.registry import MODELS


@MODELS.register_module()
class SSDLiteHead(SSDHead):
    """mmdet's SSDHead, which cannot predict from mmdet 3.2 on.

    Prediction asks ``loss_cls`` of every dense head for its activation, but SSDHead computes its
    classification loss without such a module. Parameters and their names are the same.
    """

    loss_cls = None
