"""What the command lines of training and testing share."""

import argparse
import errno
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.config import DictAction

from ..arch import ARCHS
from ..errors import UserError

# What an error of PyTorch in a function of others has to do with the config.
ADVICE = {
    ('_verify_batch_size', 'Expected more than 1 value per channel'): (
        'A batch norm was to train on one value per channel. The heads of PSPNet and DeepLabv3 pool each '
        'image to one pixel, and so need two images in a batch, or SyncBN over several GPUs: set '
        'train_dataloader.batch_size higher, drop_last=True beside it, or norm_cfg.type of the head to '
        'SyncBN.'
    ),
    ('stack_batch', 'stack expects each tensor to be equal size'): (
        'Images of several sizes came into one batch. Those smaller than the crop are padded to '
        'model.data_preprocessor.size: set it to the crop_size of the training pipeline.'
    ),
}


def common_parser(description: str) -> argparse.ArgumentParser:
    """The arguments of every tool that runs a config, named as in the other OpenMMLab packages."""
    parser = argparse.ArgumentParser(description=description)
    add_config_arguments(parser)
    parser.add_argument(
        '--work-dir', help='folder for logs and checkpoints (default: work_dirs/<name of config>)'
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how several processes are started (default: none, one process)',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that choose a config and change it."""
    parser.add_argument('config', help='config file, for example configs/det/….py')
    parser.add_argument(
        '--data-root',
        metavar='DIR',
        help='use the data set in DIR instead of the one of the config. Detection: COCO layout '
        '(annotations/instances_{train,val}2017.json, train2017/, val2017/), the classes come from '
        'the annotation files. Segmentation: ADE layout (images/{training,validation}/, '
        'annotations/{training,validation}/) with a classes.txt, one name per line',
    )
    parser.add_argument(
        '--arch',
        choices=list(ARCHS),
        help='switch the MobileMamba of the config to another variant; the channels that necks and '
        'heads expect are set to fit',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_OptionsAction,
        metavar='KEY=VALUE',
        help='change settings of the config, for example optim_wrapper.optimizer.lr=1e-4 '
        'train_dataloader.batch_size=8 (lists: key="[a,b]")',
    )


class _OptionsAction(DictAction):
    """As in the other OpenMMLab packages, but what has no value is refused."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: list[str],
        option_string: str | None = None,
    ) -> None:
        if without := [text for text in values if '=' not in text]:
            parser.error(f'{option_string} {" ".join(without)}: allowed is KEY=VALUE, with no spaces')
        super().__call__(parser, namespace, values, option_string)


@contextmanager
def user_errors_reported() -> Iterator[None]:
    """Print what the user can put right as one message, without a traceback, and exit with 1."""
    try:
        yield
    except UserError as error:
        sys.exit(f'error: {error}')
    except (RuntimeError, ValueError) as error:
        functions = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
        for (function, words), advice in ADVICE.items():
            if function in functions and words in str(error):
                sys.exit(f'error: {advice} ({error})')
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(
            f'error: The disk is full or your quota used up: {error}. What was written before is kept. '
            'Free some space or choose another folder, and run the command again; a training goes on '
            'from its last checkpoint with --resume.'
        )
