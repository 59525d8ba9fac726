import pytest
import torch
from mmseg.structures import SegDataSample
from mmseg.utils import stack_batch

from mmmobilemamba.checkpoint import CheckpointError
from mmmobilemamba.engine import common_parser, user_errors_reported
from mmmobilemamba.errors import UserError


@pytest.mark.parametrize('kind', [UserError, CheckpointError])
def test_user_errors_end_with_their_message_alone(kind):
    with pytest.raises(SystemExit) as caught, user_errors_reported():
        raise kind('give more')
    assert caught.value.code == 'error: give more'


def test_other_errors_keep_their_traceback():
    with pytest.raises(ValueError, match='a bug'), user_errors_reported():
        raise ValueError('a bug')


def test_batch_norms_of_one_value_are_explained():
    norm = torch.nn.BatchNorm2d(4)
    told = 'error: A batch norm .*set train_dataloader.batch_size'
    with pytest.raises(SystemExit, match=told), user_errors_reported():
        norm(torch.randn(1, 4, 1, 1))


def test_images_of_several_sizes_are_explained():
    images, samples = [torch.zeros(3, 8, 8), torch.zeros(3, 6, 8)], [SegDataSample(), SegDataSample()]
    told = 'error: Images of several sizes .*data_preprocessor.size'
    with pytest.raises(SystemExit, match=told), user_errors_reported():
        stack_batch(images, samples, size=(6, 6))
    with pytest.raises(RuntimeError, match='stack expects'), user_errors_reported():
        torch.stack(images)


def test_an_option_without_a_value_is_refused(capsys):
    with pytest.raises(SystemExit):
        common_parser('').parse_args(['config.py', '--cfg-options', 'a.b=1', 'c'])
    assert '--cfg-options c: allowed is KEY=VALUE' in capsys.readouterr().err


def test_options_are_named_as_in_other_packages():
    words = 'config.py --work-dir w --launcher pytorch --local-rank 1 --cfg-options a.b=1 c=[1,2]'
    args = common_parser('').parse_args(words.split())
    assert (args.config, args.work_dir, args.launcher) == ('config.py', 'w', 'pytorch')
    assert args.local_rank == 1
    assert args.cfg_options == {'a.b': 1, 'c': [1, 2]}
    assert args.data_root is None
