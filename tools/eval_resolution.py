#!/usr/bin/env python3
"""High-resolution evaluation: one checkpoint at several test sizes.

At each size: mAP or mIoU, FLOPs, latency and peak memory (batch size 1). Writes resolution.json, .csv,
.md and .png to the work directory. Sizes that resolution.json already holds for the same config,
weights, data, --repeats and device are not run again, so an interrupted run goes on where it stopped.

Peak memory is that of one prediction, as tools/benchmark.py has it. GPU: what PyTorch allocates, weights
included. CPU (Linux): by how much the resident memory of a fresh process grows from before the model is built
to the peak of its second prediction, libraries left out.
"""

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from mmmobilemamba import engine
from mmmobilemamba.benchmark.accuracy_and_cost import evaluate_at
from mmmobilemamba.datasets import with_data
from mmmobilemamba.errors import UserError
from mmmobilemamba.evaluation import table
from mmmobilemamba.evaluation.load import check_device, device_name
from mmmobilemamba.evaluation.resolution import (
    MODES,
    ResultFile,
    SizeResult,
    TestSize,
    result_key,
    scale_name,
    set_mode,
    test_scale,
)


def parse_args() -> argparse.Namespace:
    parser = engine.common_parser(__doc__)
    parser.add_argument('checkpoint', help='file or address of the weights')
    parser.add_argument(
        '--sizes',
        nargs='+',
        required=True,
        metavar='SIZE',
        help='test sizes: the shorter side in pixels (512), in the proportions of the scale of the '
        'config, or a whole scale, height x width (800x1333) as in the tables and in tools/benchmark.py; the '
        'Resize of a pipeline has them the other way round',
    )
    parser.add_argument(
        '--mode',
        nargs='+',
        choices=MODES,
        default=['whole'],
        help='segmentation: the image at once, or window by window (default: whole)',
    )
    parser.add_argument(
        '--crop',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='window of --mode slide (default: as in training)',
    )
    parser.add_argument(
        '--stride', type=int, nargs=2, metavar=('H', 'W'), help='step of the window (default: 2/3 of it)'
    )
    parser.add_argument('--deploy', action='store_true', help='fold the backbone first')
    parser.add_argument('--repeats', type=int, default=10, help='predictions to time (default: %(default)s)')
    return parser.parse_args()


def prepare(args: argparse.Namespace) -> Config:
    cfg = engine.load_config(args.config, args.cfg_options, args.arch)
    if args.launcher != 'none':
        raise UserError('The cost is measured on one device: run without --launcher.')
    if args.repeats < 1:
        raise UserError(f'--repeats must be at least 1, not {args.repeats}.')
    engine.init_processes(cfg, args.launcher, args.local_rank)
    engine.skip_training(cfg)
    engine.load_for_testing(cfg, args.checkpoint)
    engine.set_work_dir(cfg, args.work_dir)
    cfg = with_data(cfg, args.data_root)
    engine.report_overruled(cfg, args.cfg_options)
    return cfg


def main() -> None:
    args = parse_args()
    with engine.user_errors_reported():
        cfg = prepare(args)
        sizes = [TestSize.parse(size).fit(test_scale(cfg)) for size in args.sizes]
        windows = dict(crop=args.crop, stride=args.stride)
        for mode in args.mode:
            set_mode(copy.deepcopy(cfg), mode, **windows)
        evaluate(args, cfg, [(s, m) for s in dict.fromkeys(sizes) for m in dict.fromkeys(args.mode)], windows)


def evaluate(
    args: argparse.Namespace,
    cfg: Config,
    points: Sequence[tuple[tuple[int, int], str]],
    windows: dict[str, Sequence[int] | None],
) -> None:
    work_dir = Path(cfg.work_dir)
    file = ResultFile(work_dir / 'resolution.json')
    # The work directory changes no result.
    described = copy.deepcopy(cfg)
    described.pop('work_dir')
    depends = (str(args.deploy), str(windows), f'repeats={args.repeats}', device_name(check_device(None)))
    results = []
    for number, (scale, mode) in enumerate(points, start=1):
        key = result_key(described, args.checkpoint, scale, mode, *depends)
        result = file.get(key)
        state = 'done before' if result else 'testing'
        print(f'[{number}/{len(points)}] {scale_name(scale)}, {mode}: {state}', flush=True)
        if result is None:
            result = evaluate_at(copy.deepcopy(cfg), scale, mode, windows, args.deploy, args.repeats)
            file.add(key, result)
        results.append(result)
        write(work_dir, Path(args.config).stem, results)
    print(f'\n{table.to_markdown(results)}\n\nresolution.json, .csv, .md and .png are in {work_dir}/')


def write(work_dir: Path, title: str, results: Sequence[SizeResult]) -> None:
    (work_dir / 'resolution.md').write_text(table.to_markdown(results) + '\n', encoding='utf-8')
    (work_dir / 'resolution.csv').write_text(table.to_csv(results), encoding='utf-8')
    table.plot(results, work_dir / 'resolution.png', title)


if __name__ == '__main__':
    main()
