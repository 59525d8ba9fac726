import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import REPOSITORY


def run(*command, cwd, **variables) -> str:
    """Run a program as users do, and return what it prints."""
    python = Path(sys.executable).parent
    env = dict(
        os.environ,
        PYTHONPATH=f'{REPOSITORY}{os.pathsep}{os.environ.get("PYTHONPATH", "")}',
        PATH=f'{python}{os.pathsep}{os.environ["PATH"]}',
        OMP_NUM_THREADS='1',
        **variables,
    )
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def newest(work_dir: Path, pattern: str) -> str:
    """Text of a file of the newest run in a work directory."""
    return max(work_dir.glob(pattern), key=lambda p: p.stat().st_mtime_ns).read_text()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def test_detector_trains_and_is_tested(tmp_path, tool, det_config, coco_root):
    data = ('--data-root', coco_root)
    train = REPOSITORY / 'tools/train.py'
    unread = ('--cfg-options', 'model.test_cfg.score_th=1')
    said = run(sys.executable, train, det_config, *data, '--seed', 1, *unread, cwd=tmp_path)
    assert re.search(r'Epoch\(train\) \[1\]\[2/2\].* eta: .* loss: ', said)
    assert 'pkg_resources' not in said
    # Before there was a run with a file for them.
    log = newest(tmp_path / 'work_dirs/tiny_retinanet', '*/*.log')
    assert log.count("adds 'score_th' to model.test_cfg") == 1 and log.count(f'Data root {coco_root}: ') == 1

    tool(
        *('test.py', det_config, 'work_dirs/tiny_retinanet/epoch_1.pth', *data),
        *('--work-dir', 'tested', '--out', 'predictions.pkl', '--show-dir', 'shown'),
    )
    assert re.search(r'Epoch\(test\) \[2/2\] ', newest(tmp_path / 'tested', '*/*.log'))
    predictions = pickle.loads((tmp_path / 'predictions.pkl').read_bytes())
    assert [p['img_id'] for p in predictions] == [0, 1]
    assert sorted(p.name for p in (tmp_path / 'shown').iterdir()) == ['000000.jpg', '000001.jpg']


def test_data_that_fill_no_batch(tmp_path, tool, det_config, coco_root):
    loader = ('batch_sampler=None', 'batch_size=9', 'drop_last=True')
    with pytest.raises(SystemExit, match=r'the \d samples of the data set fill no batch of 9'):
        tool(
            *('train.py', det_config, '--data-root', coco_root, '--work-dir', tmp_path / 'x'),
            *('--cfg-options', *(f'train_dataloader.{setting}' for setting in loader)),
        )


def test_detector_resumes_and_starts_from_another(tmp_path, tool, det_config, coco_root):
    train = ('train.py', det_config, '--data-root', coco_root, '--no-validate', '--work-dir')
    tool(*train, 'run', '--resume')
    written = (tmp_path / 'run/epoch_1.pth').stat().st_mtime_ns
    tool(*train, 'run', '--resume', '--cfg-options', 'train_cfg.max_epochs=2')
    log = newest(tmp_path / 'run', '*/*.log')
    assert 'resumed epoch: 1, iter: 2' in log
    assert 'Epoch(train) [2][2/2]' in log
    assert 'Epoch(train) [1]' not in log and 'Epoch(val)' not in log
    assert (tmp_path / 'run/epoch_1.pth').stat().st_mtime_ns == written

    for path in (coco_root / 'annotations').iterdir():
        content = json.loads(path.read_text())
        content['categories'].append(dict(id=3, name='circle'))
        path.write_text(json.dumps(content))
    start = (*train, 'other', '--load-from', 'run/epoch_2.pth')
    with pytest.raises(SystemExit, match='--reinit bbox_head.retina_cls'):
        tool(*start)
    tool(*start, '--reinit', 'bbox_head.retina_cls', '--auto-scale-lr')
    log = newest(tmp_path / 'other', '*/*.log')
    assert '2 tensors keep their initial values (reinit): bbox_head.retina_cls.weight' in log
    assert 'Scaling the original LR by 0.125' in log


def test_mixed_precision_and_test_time_augmentation(tmp_path, tool, det_config, coco_root):
    data = ('--data-root', coco_root)
    tool('train.py', det_config, *data, '--work-dir', 'run', '--no-validate', '--amp')
    log = newest(tmp_path / 'run', '*/*.log')
    losses = [float(x) for x in re.findall(r' loss: (\S+)', log)]
    assert len(losses) == 2 and np.isfinite(losses).all()
    if not torch.cuda.is_available():
        assert "'CPUAmpOptimWrapper'" in log

    det_config.write_text(
        det_config.read_text() + 'tta_pipeline = _base_.tta_pipeline\n'
        'tta_pipeline[1].transforms[0] = [dict(type="Resize", scale=(s, s), keep_ratio=True) '
        'for s in (64, 96)]\n'
    )
    tool('test.py', det_config, 'run/epoch_1.pth', *data, '--tta', '--deploy', '--out', 'x.pkl')
    assert 'Fused for deployment' in newest(tmp_path, 'work_dirs/*/*/*.log')
    assert len(pickle.loads((tmp_path / 'x.pkl').read_bytes())) == 2


def test_segmentor_trains_and_is_tested(tmp_path, tool, seg_config, ade_root):
    data = ('--data-root', ade_root)
    tool('train.py', seg_config, *data, '--work-dir', 'run')
    log = newest(tmp_path / 'run', '*/*.log')
    assert re.search(r'Iter\(train\) \[2/2\].* eta: .* loss: ', log)
    assert re.search(r'stripe +\|', log)
    trained = json.loads(newest(tmp_path / 'run', '*/vis_data/scalars.json').splitlines()[-1])

    (ade_root / 'images/training').rename(tmp_path / 'not needed any more')
    tool(
        *('test.py', seg_config, 'run/iter_2.pth', *data, '--work-dir', 'tested'),
        *('--out', 'maps', '--show-dir', 'shown'),
    )
    assert json.loads(newest(tmp_path / 'tested', '*/*.json'))['mIoU'] == trained['mIoU']
    maps = sorted((tmp_path / 'maps').iterdir())
    assert [p.name for p in maps] == ['000.png', '001.png']
    values = np.asarray(Image.open(maps[0]))
    assert values.shape == (72, 80) and set(np.unique(values)) <= {1, 2, 3}
    assert len(list((tmp_path / 'shown/vis_data/vis_image').iterdir())) == 2


def test_two_processes_on_a_cpu(tmp_path, tool, det_config, coco_root):
    data = ('--data-root', coco_root, '--work-dir', tmp_path / 'run dir')
    place = dict(cwd=tmp_path, PORT=str(free_port()))
    epochs = ('--cfg-options', 'train_cfg.max_epochs=2', 'train_cfg.val_interval=2')
    said = run(REPOSITORY / 'tools/dist_train.sh', det_config, 2, *data, *epochs, **place)
    assert re.search(r'Epoch\(train\) \[2\]\[1/1\]', said)
    assert said.count('image files are there, whole') == 2, 'one process checks each split'

    add_image(coco_root)
    checkpoint = tmp_path / 'run dir/epoch_2.pth'
    # So little trained, it is sure of nothing.
    data = (*data, '--cfg-options', 'model.test_cfg.score_thr=0')
    tool('test.py', det_config, checkpoint, *data, '--out', 'one.pkl')
    one = pickle.loads((tmp_path / 'one.pkl').read_bytes())
    # Half of what the detector finds becomes the truth, for a mAP that is neither 0 nor 1.
    path = coco_root / 'annotations/instances_val2017.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'annotations': to_annotations(one)}))
    tool('test.py', det_config, checkpoint, *data)
    expected = json.loads(newest(tmp_path / 'run dir', '*/*.json'))
    said = run(
        *(REPOSITORY / 'tools/dist_test.sh', det_config, checkpoint, 2, *data, '--out', 'two.pkl'), **place
    )
    assert re.search(r'Epoch\(test\) \[2/2\]', said)
    two = pickle.loads((tmp_path / 'two.pkl').read_bytes())
    assert [p['img_id'] for p in two] == [p['img_id'] for p in one] == [0, 1, 2]
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a['pred_instances'], b['pred_instances'])
    assert 0.01 < expected['coco/bbox_mAP'] < 0.99
    found = json.loads(newest(tmp_path / 'run dir', '*/*.json'))
    assert {k: v for k, v in found.items() if 'mAP' in k} == {k: v for k, v in expected.items() if 'mAP' in k}


def add_image(coco_root: Path) -> None:
    """A third image for validation, which two processes cannot share evenly."""
    path = coco_root / 'annotations/instances_val2017.json'
    content = json.loads(path.read_text())
    shutil.copy(coco_root / 'train2017/000002.jpg', coco_root / 'val2017/000002.jpg')
    content['images'].append(dict(content['images'][0], id=2, file_name='000002.jpg'))
    path.write_text(json.dumps(content))


def to_annotations(predictions: list[dict]) -> list[dict]:
    annotations = []
    for predicted in predictions:
        found = predicted['pred_instances']
        for box, label in list(zip(found['bboxes'].tolist(), found['labels'].tolist(), strict=True))[::2]:
            x, y, w, h = box[0], box[1], box[2] - box[0], box[3] - box[1]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=predicted['img_id'],
                    category_id=label + 1,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                )
            )
    return annotations


def test_two_processes_compute_the_gradients_of_one(tmp_path):
    command = (sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', 2)
    place = ('--master_port', free_port(), Path(__file__).with_name('two_processes.py'), 'found.json')
    run(*command, *place, cwd=tmp_path)
    found = json.loads((tmp_path / 'found.json').read_text())
    assert len(found) == 3
    for name, (loss, loss_of_one, differences) in found.items():
        assert loss == pytest.approx(loss_of_one, rel=1e-7), name
        assert differences and max(differences.values()) < 1e-6, name
