"""Which settings the parts of a config can have, told by what is built of them."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

from mmengine import registry
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hooks import CheckpointHook
from mmengine.registry import Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, TestLoop, ValLoop
from torch.utils.data import DataLoader

from ..datasets.data_root import LOADERS
from .config_nodes import type_name

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
GIVEN = ('runner', 'dataloader', 'evaluator', 'params')
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


# Those whose classes are known to take nothing out of the parts inside of theirs, but for what is told below.
PACKAGES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmmobilemamba', 'torch')


@dataclass(frozen=True)
class Part:
    """A dict in a config, of which something may be built.

    Attributes:
        place: The words of its name.
        settings: The dict.
        scope: In which its type is looked up first.
        in_other_code: Whether it is inside of one that code of other packages reads.
    """

    place: tuple[str, ...]
    settings: dict[str, Any]
    scope: str | None
    in_other_code: bool = False

    @cached_property
    def built(self) -> tuple[type, ...]:
        """The class of its type, or those that it may be of where it needs none."""
        kind = self.settings.get('type')
        if kind is None:
            return WITHOUT_TYPE.get(self.place[0], ()) if len(self.place) == 1 else ()
        found = _find(self.place[0], self.scope, kind) if isinstance(kind, str) else kind
        return (found,) if inspect.isclass(found) else ()

    def inside(self) -> Iterator['Part']:
        """Itself and all parts inside."""
        yield self
        # Albumentations' transforms have names that others have too.
        if type_name(self.settings) != 'Albu':
            typed = 'type' in self.settings
            other = typed and not any(c.__module__.split('.')[0] in PACKAGES for c in self.built)
            yield from _parts(self.settings, self.place, self.scope, self.in_other_code or other)


def parts(cfg: Config) -> Iterator[Part]:
    """The parts of a config that something may be built of."""
    for top in REGISTRIES:
        yield from _parts({top: cfg.get(top)}, (), cfg.get('default_scope'), False)


def _parts(node: Any, place: tuple[str, ...], scope: str | None, in_other_code: bool) -> Iterator[Part]:
    """Those inside a dict or a list."""
    for name, value in node.items() if isinstance(node, dict) else enumerate(node):
        below = (*place, str(name))
        if isinstance(value, dict):
            yield from Part(below, value, value.get('_scope_', scope), in_other_code).inside()
        elif isinstance(value, list | tuple):
            yield from _parts(value, below, scope, in_other_code)


@dataclass(frozen=True)
class Parameters:
    """Settings that a part of a config can have.

    Attributes:
        of: Name of what is built.
        names: The settings, in the order of its parameters.
        others: Those that MMEngine gives, or that are read elsewhere.
        are_all: Whether it is certain that all else is refused.
    """

    of: str
    names: tuple[str, ...]
    others: tuple[str, ...]
    are_all: bool

    def __contains__(self, name: str) -> bool:
        return name in self.names or name in self.others


def parameters_of(part: Part) -> Parameters | None:
    """Settings that a part of a config can have; None if it is unknown what is built of it."""
    if not part.built:
        return None
    try:
        return _parameters(part)
    except (TypeError, ValueError):  # Compiled code has no signature.
        return None


def _parameters(part: Part) -> Parameters:
    place, built = part.place, part.built
    functions = [function for each in built for function in _functions(each)]
    names = dict.fromkeys(
        name
        for function in functions
        for name, p in inspect.signature(function).parameters.items()
        if name != 'self' and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    )
    # Layers are built by functions, and the losses of DETR by its heads, that take out more.
    of_layer = len(place) > 1 and (place[-1].endswith('_cfg') or place[-1] in ('dcn', 'loss_cls'))
    open_ended = any(_keywords(_functions(each)[-1]) for each in built)
    uncertain = of_layer or open_ended or part.in_other_code
    return Parameters(
        ' or '.join(each.__name__ for each in built),
        tuple(name for name in names if name not in GIVEN),
        (*TAKEN_OUT, *TAKEN_OUT_BELOW.get(place[0], ()), *(name for name in names if name in GIVEN)),
        not uncertain and all(map(_hands_on_as_it_is, functions)),
    )


def _find(top: str, scope: str | None, kind: str) -> Any:
    """What is registered under a name; unlike ``Registry.get``, this imports no module of that name."""
    prefix, _, name = kind.rpartition('.')
    scope = prefix or scope
    if scope in MODULE2PACKAGE:
        with suppress(ImportError):
            import_module(f'{scope}.registry')
    for root in REGISTRIES[top]:
        for each in (root.children.get(scope), root):
            if each is not None and name in _registered(each):
                return _registered(each)[name]
    return None


def _registered(registry: Registry) -> dict[str, Any]:
    with suppress(ImportError):  # of what a package needs and is not there
        registry.import_from_location()
    return registry.module_dict


def _functions(built: type) -> list[Any]:
    """The constructors that see the settings: one, and those it hands on to what it does not know."""
    if built is CheckpointHook:
        return [CheckpointHook.__init__, Runner.save_checkpoint]
    return list(_constructors(built)) or [built]


def _constructors(built: type) -> Iterator[Any]:
    for each in built.__mro__:
        if '__init__' in vars(each) and each is not object:
            yield each.__init__
            if not _keywords(each.__init__):
                return


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
        nodes = list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))))
    except (OSError, SyntaxError, TypeError):  # of compiled code
        return False
    own = function.__qualname__.rpartition('.')[0].rpartition('.')[2]
    parents = ('super().__init__', f'super({own}, self).__init__')
    calls = [n for n in nodes if isinstance(n, ast.Call) and ast.unparse(n.func) in parents]
    handed_on = [k.value for call in calls for k in call.keywords if k.arg is None]
    uses = [n for n in nodes if isinstance(n, ast.Name) and n.id == keywords]
    return bool(uses) and all(any(use is value for value in handed_on) for use in uses)
