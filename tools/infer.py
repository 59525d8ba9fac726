#!/usr/bin/env python3
"""Predict on images: drawn pictures, and a COCO JSON (detection) or label maps (segmentation).

The classes are those that the checkpoint names; for one without names (weights converted from elsewhere)
those of the config's data set. With --data-root they are those of that data set, in the same order.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmmobilemamba import engine
from mmmobilemamba.datasets import retarget
from mmmobilemamba.engine.config import check_writable
from mmmobilemamba.errors import UserError
from mmmobilemamba.evaluation.images import ImageError, ImageFile, find_images
from mmmobilemamba.evaluation.load import check_device, load_model
from mmmobilemamba.evaluation.predict import predict
from mmmobilemamba.evaluation.writers import DetectionWriter, SegmentationWriter


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='example: tools/infer.py configs/det/demo/retinanet_mobilemamba_demo.py model.pth '
        "data/demo/val2017 'photos/*.jpg' --out-dir predictions",
    )
    engine.add_config_arguments(parser)
    parser.add_argument('checkpoint', help='file or address of the weights')
    parser.add_argument('images', nargs='+', help='image files, folders (with all below) or quoted patterns')
    parser.add_argument(
        '--out-dir', default='predictions', help='folder for the results (default: %(default)s)'
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='detection: leave out objects below this score (default: %(default)s)',
    )
    parser.add_argument(
        '--opacity',
        type=float,
        default=0.5,
        help='segmentation: of the colours over the image (default: %(default)s)',
    )
    parser.add_argument('--batch-size', type=int, default=1, help='images of one size predicted at once')
    parser.add_argument('--device', help='cpu, cuda:0, … (default: the first GPU, else the CPU)')
    parser.add_argument('--deploy', action='store_true', help='fold the backbone first; it runs faster')
    args = parser.parse_args()
    for name in ('score_thr', 'opacity'):
        if not 0 <= getattr(args, name) <= 1:
            parser.error(f'--{name.replace("_", "-")} must be between 0 and 1, not {getattr(args, name)}')
    if args.batch_size < 1:
        parser.error(f'--batch-size must be at least 1, not {args.batch_size}')
    return args


def make_writer(args: argparse.Namespace) -> tuple:
    cfg = engine.load_config(args.config, args.cfg_options, args.arch)
    device = check_device(args.device)
    category_ids = None
    if args.data_root is not None:
        engine.skip_training(cfg)
        cfg = retarget(cfg, args.data_root)
        engine.report_overruled(cfg, args.cfg_options)
        if cfg.default_scope == 'mmdet':
            dataset = cfg.test_dataloader.dataset
            content = json.loads(Path(dataset.data_root, dataset.ann_file).read_bytes())
            category_ids = [category['id'] for category in content['categories']]
    model = load_model(
        cfg, args.checkpoint, device, args.deploy, classes_from_data=args.data_root is not None
    )
    check_writable(args.out_dir, '--out-dir')
    if cfg.default_scope == 'mmdet':
        return model, DetectionWriter(model, Path(args.out_dir), args.score_thr, category_ids)
    return model, SegmentationWriter(model, Path(args.out_dir), args.opacity)


def main() -> None:
    args = parse_args()
    console = Console(soft_wrap=True)
    files, bad = find_images(args.images)
    for line in bad:
        console.print(f'bad: {line}', markup=False, highlight=False)
    with engine.user_errors_reported():
        if not files:
            raise UserError('No image to predict on.')
        model, writer = make_writer(args)
        columns = (TextColumn('predicting'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task('', total=len(files))

            def on_bad_image(_: ImageFile, error: ImageError) -> None:
                bad.append(str(error))
                progress.console.print(f'bad: {error}', markup=False, highlight=False)
                progress.advance(task)

            for prediction in predict(model, files, args.batch_size, on_bad_image):
                writer.add(*prediction)
                progress.advance(task)
        written = writer.close()
    done = len(writer.content['images'])
    print(f'{done} of {len(files)} images predicted: {written}')
    if bad:
        raise SystemExit(f'error: {len(bad)} inputs could not be used:\n  ' + '\n  '.join(bad))


if __name__ == '__main__':
    main()
