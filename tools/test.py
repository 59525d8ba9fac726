#!/usr/bin/env python3
"""Test a detector or segmentor: the metrics of the config, and pictures of the predictions."""

import argparse

from mmmobilemamba import engine
from mmmobilemamba.datasets import with_data


def parse_args() -> argparse.Namespace:
    parser = engine.common_parser(__doc__)
    parser.add_argument('checkpoint', help='file or address of the weights')
    parser.add_argument(
        '--out',
        help='write the predictions: a .pkl file for detection, a folder of label maps for segmentation',
    )
    parser.add_argument('--show', action='store_true', help='show each drawn image in a window')
    parser.add_argument(
        '--show-dir',
        metavar='DIR',
        help='write the drawn images to DIR (segmentation: to DIR/vis_data/vis_image)',
    )
    parser.add_argument(
        '--wait-time', type=float, default=2, metavar='SECONDS', help='how long --show shows each'
    )
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation, as the config describes it'
    )
    parser.add_argument(
        '--deploy', action='store_true', help='fold the backbone first: the same results, sooner'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with engine.user_errors_reported():
        cfg = engine.load_config(args.config, args.cfg_options, args.arch)
        engine.init_processes(cfg, args.launcher, args.local_rank)
        engine.skip_training(cfg)
        engine.load_for_testing(cfg, args.checkpoint)
        engine.set_work_dir(cfg, args.work_dir)
        cfg = engine.in_first_process(with_data, cfg, args.data_root)
        engine.show_predictions(cfg, args.show, args.show_dir, args.wait_time)
        engine.dump_predictions(cfg, args.out)
        if args.tta:
            engine.enable_tta(cfg)
        if args.deploy:
            engine.deploy_for_test(cfg)
        engine.report_overruled(cfg, args.cfg_options)
        engine.build_runner(cfg).test()


if __name__ == '__main__':
    main()
