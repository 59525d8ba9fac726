#!/usr/bin/env python3
"""Train a detector or segmentor."""

import argparse

from mmmobilemamba import engine
from mmmobilemamba.datasets import with_data


def parse_args() -> argparse.Namespace:
    parser = engine.common_parser(__doc__)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue a run from CHECKPOINT, or from the newest one in the work directory',
    )
    parser.add_argument('--load-from', metavar='CHECKPOINT', help='start from the weights of a whole model')
    parser.add_argument(
        '--reinit',
        nargs='+',
        default=[],
        metavar='PREFIX',
        help='with --load-from: beginnings of parameter names that keep their initial values, for '
        'example bbox_head.retina_cls to train on other classes',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='automatic mixed precision: float16 on a GPU, bfloat16 on a CPU; the other one by '
        '--cfg-options optim_wrapper.dtype=bfloat16 or float16',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the batch size of all processes together',
    )
    parser.add_argument('--no-validate', action='store_true', help='train without evaluation')
    parser.add_argument('--seed', type=int, help='seed of all random generators')
    parser.add_argument('--deterministic', action='store_true', help='use deterministic algorithms of cuDNN')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with engine.user_errors_reported():
        cfg = engine.load_config(args.config, args.cfg_options, args.arch)
        engine.init_processes(cfg, args.launcher, args.local_rank)
        engine.set_work_dir(cfg, args.work_dir)
        engine.load_for_training(cfg, args.load_from, args.reinit)
        engine.resume_training(cfg, args.resume)
        if args.no_validate:
            engine.skip_validation(cfg)
        cfg = engine.in_first_process(with_data, cfg, args.data_root)
        if args.amp:
            engine.enable_amp(cfg)
        if args.auto_scale_lr:
            engine.enable_auto_scale_lr(cfg)
        engine.set_randomness(cfg, args.seed, args.deterministic)
        engine.add_safeguards(cfg)
        engine.report_overruled(cfg, args.cfg_options)
        engine.build_runner(cfg).train()


if __name__ == '__main__':
    main()
