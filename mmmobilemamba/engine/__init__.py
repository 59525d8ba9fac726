from .channels import check_channels, set_arch
from .command_line import add_config_arguments, common_parser, user_errors_reported
from .config import (
    deploy_for_test,
    dump_predictions,
    enable_amp,
    enable_auto_scale_lr,
    enable_tta,
    load_config,
    set_randomness,
    set_work_dir,
    show_predictions,
    skip_training,
    skip_validation,
)
from .cpu_amp_optim_wrapper import CPUAmpOptimWrapper
from .deploy_hook import DeployHook
from .finite_loss_hook import FiniteLossHook
from .launch import build_runner, in_first_process, init_processes
from .options import report_overruled
from .own_best_hook import OwnBestHook
from .safeguards import add_safeguards
from .seed_hook import SeedHook
from .start import load_for_testing, load_for_training, resume_training
from .strict_load_hook import StrictLoadHook
from .stride_check_hook import StrideCheckHook
from .warm_up_check_hook import WarmUpCheckHook
from .whole_file_backend import WholeFileBackend

__all__ = [
    'CPUAmpOptimWrapper',
    'DeployHook',
    'FiniteLossHook',
    'OwnBestHook',
    'SeedHook',
    'StrictLoadHook',
    'StrideCheckHook',
    'WarmUpCheckHook',
    'WholeFileBackend',
    'add_config_arguments',
    'add_safeguards',
    'build_runner',
    'check_channels',
    'common_parser',
    'deploy_for_test',
    'dump_predictions',
    'enable_amp',
    'enable_auto_scale_lr',
    'enable_tta',
    'in_first_process',
    'init_processes',
    'load_config',
    'report_overruled',
    'resume_training',
    'set_arch',
    'set_randomness',
    'set_work_dir',
    'show_predictions',
    'skip_training',
    'skip_validation',
    'load_for_training',
    'load_for_testing',
    'user_errors_reported',
]
