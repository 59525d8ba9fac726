#!/usr/bin/env python3
"""Effective receptive field of backbones, side by side (Luo et al., NeurIPS 2016).

The gradient of the centre output, summed over channels, at the input: drawn on one logarithmic scale, and
the share of the input's area whose centred square holds 20, 30, 50 and 99 % of the gradient.

Without weights it shows how far the design reaches: random convolutions, batch norms that scale by 1 and
shift by 0. MobileMamba begins training with residual branches, its token mixers among them, scaled by 0; here
they are on. What training made of it, only weights show.

A model is one of
  b1                          a variant of MobileMamba, random weights, all branches on
  b1,weights.pth              with the weights of a checkpoint of the backbone
  config.py,checkpoint.pth    the backbone of a trained detector or segmentor (config.py: random weights)
  'mmdet.ResNet(depth=50)'    any backbone of the registries of mmdet, mmseg and mmpretrain, with its
                              arguments; init_cfg=dict(type='Pretrained', checkpoint='…') loads weights
"""

import argparse
from pathlib import Path

import torch
from rich.progress import track

from mmmobilemamba import markdown
from mmmobilemamba.arch import ARCHS
from mmmobilemamba.datasets.layout import duplicates
from mmmobilemamba.engine import user_errors_reported
from mmmobilemamba.engine.config import check_picture
from mmmobilemamba.errors import UserError
from mmmobilemamba.evaluation.backbone_spec import build_backbone, short_name
from mmmobilemamba.evaluation.images import find_images
from mmmobilemamba.evaluation.load import check_device
from mmmobilemamba.evaluation.receptive_field import (
    MASSES,
    area_shares,
    draw_fields,
    effective_receptive_field,
    noise_images,
    normalised_images,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('models', nargs='+', metavar='MODEL', help=f'see above; variants: {", ".join(ARCHS)}')
    parser.add_argument('--images', nargs='+', help='files, folders or patterns (default: Gaussian noise)')
    parser.add_argument(
        '--num-images', type=int, default=16, help='how many to average (default: %(default)s)'
    )
    parser.add_argument(
        '--size', type=int, default=512, help='height and width in pixels (default: %(default)s)'
    )
    parser.add_argument(
        '--out-index',
        type=int,
        default=-1,
        help='map of the backbone, counted from 0 (default: the last)',
    )
    parser.add_argument('--device', help='cpu, cuda:0, … (default: the first GPU, else the CPU)')
    parser.add_argument('--seed', type=int, default=0, help='of random weights and noise')
    parser.add_argument('--out', default='erf.png', help='picture to write (default: %(default)s)')
    args = parser.parse_args()
    if args.size < 1 or args.num_images < 1:
        parser.error('--size and --num-images must be at least 1')
    return args


def main() -> None:
    args = parse_args()
    with user_errors_reported():
        check_picture(args.out, '--out')
        device = check_device(args.device)
        images, source = make_images(args)
        images = [image.to(device) for image in images]
        backbones = {}
        repeated = duplicates(map(short_name, dict.fromkeys(args.models)))
        for spec in args.models:
            torch.manual_seed(args.seed)
            name = short_name(spec)
            backbones[spec if name in repeated else name] = build_backbone(spec)
        fields = {
            name: effective_receptive_field(backbone.to(device), track(images, name), args.out_index)
            for name, backbone in backbones.items()
        }
        report(fields)
        draw_fields(fields, Path(args.out), source)
    print(f'drawn: {args.out}')


def make_images(args: argparse.Namespace) -> tuple[list[torch.Tensor], str]:
    if args.images is None:
        return noise_images(
            args.num_images, args.size, args.seed
        ), f'{args.num_images} images of Gaussian noise'
    files, problems = find_images(args.images)
    if problems or not files:
        raise UserError('--images: ' + '; '.join(problems))
    chosen = files[: args.num_images]
    return normalised_images([file.path for file in chosen], args.size), f'{len(chosen)} images'


def report(fields: dict[str, torch.Tensor]) -> None:
    heads = ['area (%) that holds this much of the gradient', *(f'{mass:.0%}' for mass in MASSES)]
    rows = ([name, *(f'{100 * share:.1f}' for share in area_shares(field))] for name, field in fields.items())
    print(markdown.table(heads, rows))


if __name__ == '__main__':
    main()
