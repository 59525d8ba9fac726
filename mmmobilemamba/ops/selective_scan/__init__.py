# A backend joins the choice when its file is imported.
from . import mamba_ssm_backend, native_backend, reference, torch_backend  # noqa: F401
from .interface import (
    available_backends,
    bidirectional_selective_scan,
    check_backend,
    choose_backend,
    selective_scan,
)

__all__ = [
    'available_backends',
    'bidirectional_selective_scan',
    'check_backend',
    'choose_backend',
    'selective_scan',
]
