"""Checkpoint files read without running any of their content, on every version of torch."""

import codecs
import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader

# From 2.6 on, `weights_only` admits objects by names that the caller gives, and no TorchScript.
WEIGHTS_ONLY_IS_ENOUGH = torch.__version__ >= (2, 6)
_torch_load = torch.load


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)`` read the few harmless classes that mmengine's files hold.

    Without it, torch ≥ 2.6 refuses to resume from the checkpoints that mmengine itself writes: their
    message hub keeps the logged scalars in ``HistoryBuffer`` objects made of numpy arrays.
    """
    if WEIGHTS_ONLY_IS_ENOUGH:
        torch.serialization.add_safe_globals([(thing, name) for name, thing in _harmless().items()])


def safe_load(place: str) -> Any:
    """The content of a checkpoint file: tensors, plain values, and what mmengine adds to them.

    Args:
        place: a path, or an address that mmengine can open.

    Raises:
        pickle.UnpicklingError: when it holds anything else.
        OSError, RuntimeError, ValueError, EOFError: when it cannot be read.
    """
    if '://' not in place:
        return _load(place)
    # MMEngine, and torch.hub after it, read what they fetched with weights_only=False.
    with patch.object(torch, 'load', _load):
        return CheckpointLoader.load_checkpoint(place, map_location='cpu')


def _load(file: Any, *ignored: Any, **also_ignored: Any) -> Any:
    if WEIGHTS_ONLY_IS_ENOUGH:
        # Again, for the fork of mmengine takes some of the classes off the list after every load.
        allow_mmengine_checkpoints()
        return _torch_load(file, map_location='cpu', weights_only=True)
    with patch.object(torch.jit, 'load', _refuse_torchscript):
        return _torch_load(file, map_location='cpu', weights_only=False, pickle_module=_RestrictedPickle)


def _refuse_torchscript(*args: Any, **kwargs: Any) -> None:
    raise pickle.UnpicklingError('it is a TorchScript program')


class _RestrictedUnpickler(pickle._Unpickler):
    """Builds what ``weights_only`` of newer versions admits, and nothing else.

    That of torch 2.1 to 2.3 takes no more classes, and that of 2.4 and 2.5 none by the name it has in a file.
    """

    def find_class(self, module: str, name: str) -> Any:
        # Files of torch name the modules as Python 2 did.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        if f'{module}.{name}' not in _admitted():
            raise pickle.UnpicklingError(f'{module}.{name} is not allowed')
        return _admitted()[f'{module}.{name}']

    def load_build(self) -> None:
        """Set attributes of objects, but not of the classes and functions themselves."""
        if type(self.stack[-2]) not in _admitted().values():
            raise pickle.UnpicklingError(f'setting attributes of {self.stack[-2]!r} is not allowed')
        super().load_build()

    dispatch = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}


class _RestrictedPickle:
    """What torch.load uses of a ``pickle_module``."""

    Unpickler = _RestrictedUnpickler

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        return _RestrictedUnpickler(file, **options).load()


@cache
def _admitted() -> dict[str, Any]:
    # With it, files of protocol 2 hold bytes.
    return {
        **torch._weights_only_unpickler._get_allowed_globals(),
        '_codecs.encode': codecs.encode,
        **_harmless(),
    }


def _harmless() -> dict[str, Any]:
    """What mmengine's files hold beside tensors and plain values, by the names it has in them."""
    functions = np.ones(1).__reduce__()[0], np.float64(1).__reduce__()[0]
    dtypes = [type(np.dtype(name)) for name in ('float64', 'float32', 'int64', 'int32', 'bool')]
    return {
        # Numpy 2 names the module of these otherwise than numpy 1, under which a file may have been written.
        **{f'numpy.{core}.multiarray.{f.__name__}': f for core in ('core', '_core') for f in functions},
        **{f'{c.__module__}.{c.__name__}': c for c in (HistoryBuffer, np.ndarray, np.dtype, *dtypes)},
        'builtins.getattr': _history_method,
    }


def _history_method(owner: type, name: str) -> Any:
    """What ``getattr`` may do in a checkpoint: name the statistics of mmengine's history buffers."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'attribute {name!r} of {owner!r} is not allowed')
    return getattr(owner, name)
