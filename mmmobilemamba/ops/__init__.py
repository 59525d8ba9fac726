from .batch_norm import batch_norm
from .depthwise import depthwise_conv2d
from .haar import haar_analysis, haar_synthesis
from .selective_scan import (
    available_backends,
    bidirectional_selective_scan,
    check_backend,
    choose_backend,
    selective_scan,
)

__all__ = [
    'available_backends',
    'batch_norm',
    'bidirectional_selective_scan',
    'check_backend',
    'choose_backend',
    'depthwise_conv2d',
    'haar_analysis',
    'haar_synthesis',
    'selective_scan',
]
