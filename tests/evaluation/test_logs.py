import json

from mmmobilemamba.evaluation.logs import find_logs, read_curves


def write(path, *lines):
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(map(json.dumps, lines)))


def train(iteration, **more):
    return dict(loss=float(iteration), lr=0.1, iter=iteration, step=iteration, **more)


def test_a_resumed_run_by_iterations(tmp_path):
    """The second run goes on from a checkpoint older than the end of the first."""
    write(tmp_path / '1/vis_data/scalars.json', train(10), dict(mIoU=1, step=10), train(20), train(30))
    write(tmp_path / '2/vis_data/scalars.json', train(20), dict(mIoU=2, step=22))
    curves = read_curves(find_logs(tmp_path))
    assert curves['loss'] == ([10, 20], [10.0, 20.0])
    assert curves['mIoU'] == ([10, 22], [1, 2])


def test_a_resumed_run_that_only_validated(tmp_path):
    write(tmp_path / '1/vis_data/scalars.json', train(10), train(20), dict(mIoU=1, step=20))
    write(tmp_path / '2/vis_data/scalars.json', dict(mIoU=2, step=22))
    curves = read_curves(find_logs(tmp_path))
    assert curves['loss'][0] == [10, 20] and curves['mIoU'] == ([20, 22], [1, 2])


def test_validations_of_iterations_may_be_counted_by_epochs(tmp_path):
    """As where only the loop counts iterations: there is no epoch, and their step stays 0."""
    write(tmp_path / '1/vis_data/scalars.json', train(50), train(100), dict(mAP=1, step=0), train(200))
    write(tmp_path / '2/vis_data/scalars.json', dict(mAP=2, step=0), train(250), dict(mAP=3, step=0))
    curves = read_curves(find_logs(tmp_path))
    assert curves['loss'][0] == [50, 100, 200, 250]
    assert curves['mAP'] == ([100, 200, 250], [1, 2, 3])


def test_only_logs_of_one_work_directory_are_joined(tmp_path):
    for run, steps in (('a/20250102', [150, 200]), ('a/20250101', [50, 100]), ('b/20250100', [10])):
        write(tmp_path / run / 'vis_data/scalars.json', *map(train, steps))
    for place in (tmp_path, tmp_path / 'a'):  # by the times in the names, not those of the files
        assert read_curves(find_logs(place))['loss'][0] == [50, 100, 150, 200]


def test_the_folder_of_one_run_is_its_log_alone(tmp_path, monkeypatch):
    for run, step in (('1', 50), ('2', 100)):
        write(tmp_path / run / 'vis_data/scalars.json', train(step))
    assert read_curves(find_logs(tmp_path / '2'))['loss'][0] == [100]
    monkeypatch.chdir(tmp_path / '2')
    assert read_curves(find_logs('.'))['loss'][0] == [100]


def test_a_resumed_run_by_epochs(tmp_path):
    write(tmp_path / '1/vis_data/scalars.json', train(5, epoch=1), dict(mAP=1, step=1))
    write(tmp_path / '2/vis_data/scalars.json', train(10, epoch=2), dict(mAP=2, step=2))
    curves = read_curves(find_logs(tmp_path))
    assert curves['loss'][0] == [5, 10] and curves['mAP'] == ([5, 10], [1, 2])


def test_a_run_begun_again_replaces_the_one_before(tmp_path):
    write(tmp_path / '1/vis_data/scalars.json', train(5), train(10), train(15))
    write(tmp_path / '2/vis_data/scalars.json', train(5), train(10))
    assert read_curves(find_logs(tmp_path))['loss'][0] == [5, 10]
