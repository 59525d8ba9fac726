import json

import pytest
from tiny import make_checkpoint

CLASSES = ('background', 'square', 'stripe')


@pytest.fixture
def evaluate(tool, tmp_path, capsys):
    """Run the tool; gives its results by size and mode, and what it printed."""

    def evaluate(*arguments) -> tuple[dict, str]:
        tool('eval_resolution.py', *arguments, '--work-dir', 'out')
        results = json.loads((tmp_path / 'out/resolution.json').read_text())['results']
        return {' '.join(key.split()[:2]): result for key, result in results.items()}, capsys.readouterr().out

    return evaluate


def test_an_interrupted_run_goes_on(tmp_path, evaluate, seg_config, ade_root):
    checkpoint = make_checkpoint(seg_config, CLASSES, tmp_path / 'x.pth')
    common = (seg_config, checkpoint, '--data-root', ade_root)
    first, _ = evaluate(*common, '--sizes', '64', '--repeats', 1)
    both, said = evaluate(*common, '--sizes', '64', '960x1920', '--repeats', 1)
    assert '[1/2] 64x128, whole: done before' in said and '[2/2] 960x1920, whole: testing' in said
    assert len(both) == 2 and first.items() <= both.items()
    assert '| 960×1920 | whole | 960×' in said
    small, large = both['64x128 whole'], both['960x1920 whole']
    assert large['gflops'] > 100 * small['gflops'] > 0 and small['scan_gflops'] > 0
    assert 0 <= small['metrics']['mIoU'] <= 100
    for suffix in ('csv', 'md', 'png'):
        assert (tmp_path / f'out/resolution.{suffix}').stat().st_size > 100
    # Timed more often it counts as new; and the memory of the small size is its own, after the large one.
    again, said = evaluate(*common, '--sizes', '64', '--repeats', 2)
    assert '[1/1] 64x128, whole: testing' in said
    if small['peak_memory_mib'] is not None:
        weights = checkpoint.stat().st_size / 2**20
        assert weights < again['64x128 whole']['peak_memory_mib'] < 0.7 * large['peak_memory_mib']


def test_windows(tmp_path, evaluate, seg_config, ade_root):
    checkpoint = make_checkpoint(seg_config, CLASSES, tmp_path / 'x.pth')
    seg_config.write_text(seg_config.read_text() + "custom_hooks = [dict(type='EMAHook')]\n")
    options = ('--sizes', '96', '--mode', 'slide', '--repeats', 1, '--deploy')
    found, _ = evaluate(seg_config, checkpoint, '--data-root', ade_root, *options)
    assert found['96x192 slide']['gflops'] > 0


def test_windows_are_for_segmentors(evaluate, tmp_path, det_config, coco_root):
    checkpoint = make_checkpoint(det_config, ('square', 'stripe'), tmp_path / 'x.pth')
    with pytest.raises(SystemExit, match='only segmentors'):
        evaluate(det_config, checkpoint, '--data-root', coco_root, '--sizes', 64, '--mode', 'slide')


@pytest.mark.parametrize('name', ['benchmark.py', 'eval_resolution.py'])
def test_sizes_are_height_by_width_in_both_tools(tool, capsys, name):
    with pytest.raises(SystemExit):
        tool(name, '--help')
    said = ' '.join(capsys.readouterr().out.split())
    assert 'height x width (800x1333)' in said
    # They mean the same by memory, too.
    assert 'the resident memory of a fresh process grows from before the model is built to the peak' in said
