"""Which settings the parts of a config can have, told by what is built of them."""

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine import registry
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, TestLoop, ValLoop
from torch.utils.data import DataLoader

from ..datasets.data_root import LOADERS

# Where to look for the types below a setting of the top.
REGISTRIES = dict(
    model=(registry.MODELS, registry.TASK_UTILS),
    optim_wrapper=(registry.OPTIM_WRAPPERS, registry.OPTIMIZERS),
    param_scheduler=(registry.PARAM_SCHEDULERS,),
    default_hooks=(registry.HOOKS,),
    custom_hooks=(registry.HOOKS,),
    train_cfg=(registry.LOOPS,),
    val_cfg=(registry.LOOPS,),
    test_cfg=(registry.LOOPS,),
    val_evaluator=(registry.METRICS,),
    test_evaluator=(registry.METRICS,),
    visualizer=(registry.VISUALIZERS, registry.VISBACKENDS),
    **dict.fromkeys(LOADERS, (registry.DATASETS, registry.TRANSFORMS, registry.DATA_SAMPLERS)),
)
# What those take that have no type.
WITHOUT_TYPE = dict(
    **dict.fromkeys(LOADERS, (DataLoader,)),
    train_cfg=(EpochBasedTrainLoop, IterBasedTrainLoop),
    val_cfg=(ValLoop,),
    test_cfg=(TestLoop,),
)
# What MMEngine gives to what it builds, and what it takes out before, anywhere or below a setting of the top.
GIVEN = ('self', 'runner', 'dataloader', 'evaluator', 'params')
TAKEN_OUT = ('type', '_scope_', '_delete_')
TAKEN_OUT_BELOW = dict(
    # --amp makes another wrapper of it, which takes the last ones.
    optim_wrapper=('constructor', 'paramwise_cfg', 'dtype', 'loss_scale', 'use_fsdp'),
    param_scheduler=('convert_to_iter_based',),
    default_hooks=('priority',),
    custom_hooks=('priority',),
    train_cfg=('by_epoch',),
    **dict.fromkeys(LOADERS, ('num_batch_per_epoch',)),
)


@dataclass(frozen=True)
class Parameters:
    """Settings that a part of a config can have.

    Attributes:
        of: Name of what is built.
        names: The settings, in the order of its parameters.
        taken_out: Those that others read.
        are_all: Whether it is certain that all else is refused.
    """

    of: str
    names: tuple[str, ...]
    taken_out: tuple[str, ...]
    are_all: bool

    def __contains__(self, name: str) -> bool:
        return name in self.names or name in self.taken_out


def typed_parts(cfg: Config) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """The parts of a config that something is built of, and the words of their names."""
    for top in REGISTRIES:
        yield from _dicts(cfg.get(top), [top])


def _dicts(node: Any, place: list[str]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    if isinstance(node, dict):
        yield place, node
    if not isinstance(node, dict | list | tuple):
        return
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for name, value in items:
        yield from _dicts(value, [*place, str(name)])


def parameters_at(cfg: Config, place: Sequence[str], kind: str | type | None) -> Parameters | None:
    """Settings of a part of a config; None if it is unknown what is built of it.

    Args:
        cfg: The config.
        place: The words of its name.
        kind: Its type.
    """
    if kind is not None:
        found = kind if callable(kind) else _find(cfg, place[0], kind)
        built = () if found is None else (found,)
    else:
        built = WITHOUT_TYPE.get(place[0], ()) if len(place) == 1 else ()
    if not built:
        return None
    try:
        return _parameters(place, built)
    except ValueError:  # Compiled code has no signature.
        return None


def _parameters(place: Sequence[str], built: Sequence[Any]) -> Parameters:
    parts = [part for each in built for part in _functions(each)]
    names = dict.fromkeys(
        name
        for function in parts
        for name, p in inspect.signature(function).parameters.items()
        if name not in GIVEN and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    )
    # Layers are built by functions, and the losses of DETR by its heads, that take out more.
    of_layer = len(place) > 1 and (place[-1].endswith('_cfg') or place[-1] in ('dcn', 'loss_cls'))
    open_ended = any(_has_keywords(_functions(each)[-1]) for each in built)
    are_all = not of_layer and not open_ended and all(map(_hands_on_as_it_is, parts))
    taken_out = (*TAKEN_OUT, *TAKEN_OUT_BELOW.get(place[0], ()))
    return Parameters(' or '.join(each.__name__ for each in built), tuple(names), taken_out, are_all)


def _find(cfg: Config, top: str, kind: str) -> Any:
    for each in REGISTRIES.get(top, ()):
        try:
            with each.switch_scope_and_registry(cfg.get('default_scope')) as scoped:
                if (found := scoped.get(kind)) is not None:
                    return found
        except (ImportError, KeyError, AssertionError):  # of a package that is not there
            return None
    return None


def _functions(built: Any) -> list[Any]:
    """The constructors that see the settings: one, and those it hands on to what it does not know."""
    if built is CheckpointHook:
        return [CheckpointHook.__init__, Runner.save_checkpoint]
    if not inspect.isclass(built):
        return [built]
    found = list(_constructors(built))
    return found or [built]


def _constructors(built: type) -> Iterator[Any]:
    for each in built.__mro__:
        if '__init__' in vars(each) and each is not object:
            yield each.__init__
            if not _has_keywords(each.__init__):
                return


def _has_keywords(function: Any) -> bool:
    return _keywords(function) is not None


def _keywords(function: Any) -> str | None:
    """Name of the parameter that takes what has none of its own."""
    parameters = inspect.signature(function).parameters.items()
    return next((name for name, p in parameters if p.kind is p.VAR_KEYWORD), None)


def _hands_on_as_it_is(function: Any) -> bool:
    """Whether what a constructor does not know goes to the one of the parent class, and nowhere else."""
    if function in (CheckpointHook.__init__, Runner.save_checkpoint):
        return True
    if hasattr(function, '__wrapped__'):  # by what may rename settings
        return False
    keywords = _keywords(function)
    if keywords is None:
        return True
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):  # of compiled code
        return False
    own = function.__qualname__.rpartition('.')[0].rpartition('.')[2]
    to_parent = re.search(rf'super\((?:{own}, self)?\)\.__init__\((?:[^()]|\([^()]*\))*\*\*', text)
    return to_parent is not None and not re.search(rf'\b{keywords}(\.|\[)', text)
