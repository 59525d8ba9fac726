from .haar import haar_analysis, haar_synthesis
from .selective_scan import (
    available_backends,
    bidirectional_selective_scan,
    check_backend,
    selective_scan,
)

__all__ = [
    'available_backends',
    'bidirectional_selective_scan',
    'check_backend',
    'haar_analysis',
    'haar_synthesis',
    'selective_scan',
]
