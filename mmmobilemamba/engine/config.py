"""From command line options to settings of a config."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from matplotlib.backend_bases import FigureCanvasBase
from mmengine.config import Config
from mmengine.config.utils import ConfigParsingError
from mmengine.device import get_device
from mmengine.logging import print_log

from ..datasets.data_root import LOADERS
from ..datasets.layout import shorten
from ..errors import UserError
from .channels import check_channels, set_arch
from .config_nodes import custom_hooks, innermost_test_dataset, type_name
from .cpu_amp_optim_wrapper import DTYPES as CPU_AMP_DTYPES
from .launch import keep_early_log
from .options import check_settings, merge_options

WRITTEN_FOR_TRIAL = 2**20  # bytes


def load_config(path: str, options: dict[str, Any] | None = None, arch: str | None = None) -> Config:
    """Read a config file and the changes given by ``--cfg-options`` and ``--arch``.

    Args:
        path: The config file.
        options: Values by dotted names.
        arch: Variant of MobileMamba to switch to; channels of necks and heads are set to fit.

    Raises:
        UserError: If the file does not exist, is no Python, needs a package that is not installed, or has
            no model or a setting that what is built of it does not have, or an option has no place in it, or
            if a neck or head expects other channels than the MobileMamba of the config gives.
    """
    keep_early_log()
    file = Path(path)
    if not file.is_file():
        siblings = shorten(sorted(p.name for p in file.parent.glob('*.py')), 20)
        raise UserError(
            f'The config {path!r} does not exist. '
            + (f'{file.parent}/ holds: {siblings}.' if siblings else f'{file.parent}/ has none.')
        )
    try:
        with warnings.catch_warnings():
            # MMEngine sets it off a dozen times, and nobody here can do anything about it.
            warnings.filterwarnings('ignore', 'pkg_resources is deprecated')
            cfg = Config.fromfile(path)
    except ImportError as error:
        reason = error
        # MMEngine's own message lists sys.path, and not what went wrong.
        while reason.__context__ is not None:
            reason = reason.__context__
        raise UserError(
            f'The config {path!r} needs a package that cannot be imported: {reason}. Detection '
            'needs mmdet, segmentation mmsegmentation; see the installation in the README.'
        ) from error
    except (SyntaxError, FileNotFoundError, ConfigParsingError) as error:
        raise UserError(f'The config {path!r} or one of its bases cannot be read: {error}.') from error
    merge_options(cfg, options or {})
    if not cfg.get('model'):
        raise UserError(f'The config {path!r} has no model. Inherit one by _base_ or write model=dict(…).')
    check_settings(cfg)
    if arch is not None:
        set_arch(cfg, arch)
    check_channels(cfg)
    for loader in (cfg.get(name) for name in LOADERS):
        # PyTorch refuses to keep workers alive where there are none.
        if loader and loader.get('num_workers') == 0:
            loader.persistent_workers = False
    return cfg


def set_work_dir(cfg: Config, work_dir: str | None = None) -> None:
    """Choose the work directory: as given, else as in the config, else ``work_dirs/<config name>``.

    Raises:
        UserError: If nothing can be written there.
    """
    cfg.work_dir = work_dir or cfg.get('work_dir') or f'./work_dirs/{Path(cfg.filename).stem}'
    check_writable(cfg.work_dir, '--work-dir')


def check_writable(folder: str | Path, option: str) -> None:
    """Check that files can be written to a folder, or to the one it would be made in.

    Nothing is made, so that a command refused for another reason leaves no empty folder.

    Raises:
        UserError: If not; it names the option that chose the folder.
    """
    try:
        existing = next(p for p in (Path(folder), *Path(folder).absolute().parents) if p.exists())
        with tempfile.TemporaryFile(dir=existing) as file:
            # On a full disk, files can be opened.
            file.write(bytes(WRITTEN_FOR_TRIAL))
    except OSError as error:
        raise UserError(
            f'Cannot write to {str(folder)!r} ({error}). Choose another folder with {option}.'
        ) from error


def check_picture(path: str | Path, option: str) -> None:
    """Check that Matplotlib can write a picture to this file.

    Raises:
        UserError: If not; it names the option that gave the file.
    """
    path = Path(path)
    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise UserError(f'{option} {path}: the name of a picture must end in one of .{", .".join(formats)}.')
    check_writable(path.absolute().parent, option)


def enable_amp(cfg: Config) -> None:
    """Train with automatic mixed precision: on a CPU by default of bfloat16, elsewhere as mmengine has it.

    Raises:
        UserError: If the device or the data type is not made for it, or the config has no optimizer wrapper
            or one of its own.
    """
    device = get_device()
    if device == 'mps':
        raise UserError('--amp needs a CPU, a CUDA GPU, an NPU, an MLU or a MUSA GPU. Train without --amp.')
    amp = 'CPUAmpOptimWrapper' if device == 'cpu' else 'AmpOptimWrapper'
    options = cfg.get('optim_wrapper')
    if not options:
        raise UserError('--amp needs an optim_wrapper in the config; inherit or write one.')
    wrapper = type_name(options) or 'OptimWrapper'
    if wrapper not in ('OptimWrapper', 'AmpOptimWrapper', 'CPUAmpOptimWrapper'):
        raise UserError(f'--amp turns an OptimWrapper into an {amp}, but the config has a {wrapper}.')
    options.type = amp
    if device != 'cpu':
        options.setdefault('loss_scale', 'dynamic')
        return
    if options.setdefault('dtype', 'bfloat16') not in CPU_AMP_DTYPES:
        raise UserError(
            f'optim_wrapper.dtype is {options.dtype}, but --amp on a CPU computes in '
            f'{" or ".join(CPU_AMP_DTYPES)}.'
        )
    options.pop('use_fsdp', None)
    if options.dtype == 'float16':
        options.setdefault('loss_scale', 'dynamic')
        how = "with loss scaling; it tries out a GPU's arithmetic, and is far slower than float32"
    else:
        options.pop('loss_scale', None)
        how = 'without loss scaling'
    print_log(f'--amp on a CPU: {options.dtype}, {how}', logger='current')


def enable_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate with the batch size.

    Raises:
        UserError: If the config does not say which batch size its learning rate is for.
    """
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise UserError(
            '--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=…) in the config: the batch '
            'size of all GPUs together for which its learning rate was chosen.'
        )
    cfg.auto_scale_lr.enable = True


def set_randomness(cfg: Config, seed: int | None, deterministic: bool) -> None:
    """Seed the random generators, and choose deterministic algorithms."""
    randomness = cfg.get('randomness', {})
    if seed is not None:
        randomness['seed'] = seed
    if deterministic:
        randomness['deterministic'] = True
    if randomness:
        cfg.randomness = randomness


def skip_validation(cfg: Config) -> None:
    """Train without evaluating checkpoints."""
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    # "Best" is measured by validation.
    ((cfg.get('default_hooks') or {}).get('checkpoint') or {}).pop('save_best', None)


def skip_training(cfg: Config) -> None:
    """Take the training parts out of a config.

    MMEngine builds the training data when a hook asks a test run for its iteration, as the one of
    MMSegmentation that draws predictions does.
    """
    cfg.train_cfg = cfg.train_dataloader = cfg.optim_wrapper = cfg.param_scheduler = None


def show_predictions(
    cfg: Config, show: bool = False, show_dir: str | None = None, wait_time: float = 2
) -> None:
    """Draw the predictions of every test image.

    Args:
        cfg: The config to change.
        show: Open a window for each image.
        show_dir: Folder for the drawn images.
        wait_time: Seconds that each window stays.

    Raises:
        UserError: If the config has no visualization hook, no window can be opened, or ``show_dir`` cannot
            be written.
    """
    if not show and show_dir is None:
        return
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if hook is None:
        raise UserError(
            '--show and --show-dir need a hook named "visualization" in the default_hooks of the '
            'config: DetVisualizationHook or SegVisualizationHook.'
        )
    hook.draw = True
    if show:
        if pyplot.get_backend().lower() == 'agg':
            raise UserError(
                "--show opens no window here: Matplotlib draws with 'agg', as it does without a display. "
                'Write the drawn images with --show-dir DIR.'
            )
        hook.update(show=True, wait_time=wait_time)
    if show_dir is not None:
        check_writable(show_dir, '--show-dir')
        folder = str(Path(show_dir).absolute())
        if cfg.get('default_scope') == 'mmseg':
            cfg.visualizer.save_dir = folder
        else:
            hook.test_out_dir = folder
    if cfg.get('default_scope') == 'mmseg':
        # By default it draws every 50th image only.
        hook.interval = 1


def dump_predictions(cfg: Config, out: str | None) -> None:
    """Write the predictions: a pickle file for detection, a folder of label maps for segmentation.

    Raises:
        UserError: If ``out`` is of the wrong kind, or cannot be written, or the config evaluates nothing.
    """
    if out is None:
        return
    evaluators = cfg.get('test_evaluator')
    if not evaluators:
        raise UserError('--out needs a test_evaluator in the config; inherit or write one.')
    evaluators = list(evaluators) if isinstance(evaluators, list) else [evaluators]
    if cfg.get('default_scope') == 'mmseg':
        check_writable(out, '--out')
        for evaluator in evaluators:
            evaluator.output_dir = out
    else:
        if not out.endswith(('.pkl', '.pickle')):
            raise UserError(
                f'--out {out!r}: the predictions of a detector are one pickle file; give a name '
                'that ends in .pkl or .pickle.'
            )
        check_writable(Path(out).parent, '--out')
        evaluators.append(dict(type='DumpDetResults', out_file_path=out))
    cfg.test_evaluator = evaluators


def deploy_for_test(cfg: Config) -> None:
    """Fold the backbone for deployment before testing."""
    cfg.custom_hooks = [*custom_hooks(cfg), dict(type='DeployHook')]


def enable_tta(cfg: Config) -> None:
    """Test with the augmentations of the config (``tta_model``, ``tta_pipeline``).

    Raises:
        UserError: If the config has none.
    """
    missing = [key for key in ('tta_model', 'tta_pipeline') if not cfg.get(key)]
    if missing:
        raise UserError(
            f'--tta needs {" and ".join(missing)} in the config; inherit or copy them from '
            'mmdet::retinanet/retinanet_tta.py or mmseg::_base_/datasets/ade20k.py.'
        )
    # A class has no text in the dump of the config that the runner writes.
    kind = cfg.tta_model.type if isinstance(cfg.tta_model.type, str) else type_name(cfg.tta_model)
    cfg.model = {**cfg.tta_model, 'type': kind, 'module': cfg.model}
    innermost_test_dataset(cfg).pipeline = cfg.tta_pipeline
    print_log('Testing with test-time augmentation', logger='current')
