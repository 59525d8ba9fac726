#!/usr/bin/env python3
"""Training curves from the logs of one or several runs: one panel per scalar, one line per run."""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from mmmobilemamba.engine import user_errors_reported
from mmmobilemamba.engine.config import check_picture
from mmmobilemamba.errors import UserError
from mmmobilemamba.evaluation.logs import choose, find_logs, read_curves

DEFAULT_KEYS = ('loss', 'lr', 'coco/bbox_mAP', 'coco/segm_mAP', 'mIoU')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'runs', nargs='+', help='work directories (a resumed training is one run) or scalars.json files'
    )
    parser.add_argument(
        '--keys', nargs='+', help=f'scalars to draw (default: those there are of {", ".join(DEFAULT_KEYS)})'
    )
    parser.add_argument('--names', nargs='+', help='name of each run in the legend')
    parser.add_argument('--out', default='curves.png', help='picture to write (default: %(default)s)')
    args = parser.parse_args()
    if args.names and len(args.names) != len(args.runs):
        parser.error(f'{len(args.names)} --names for {len(args.runs)} runs')
    return args


def main() -> None:
    args = parse_args()
    with user_errors_reported():
        check_picture(args.out, '--out')
        curves = [read_curves(find_logs(run)) for run in args.runs]
        if args.keys:
            keys = [choose(c, args.keys, run) for c, run in zip(curves, args.runs, strict=True)][0]
        else:
            keys = [key for key in DEFAULT_KEYS if any(key in c for c in curves)]
        if not keys:
            raise UserError(
                f'None of the logs has any of {", ".join(DEFAULT_KEYS)}; choose others with --keys.'
            )
        draw(curves, args.names or args.runs, keys, Path(args.out))
    print(f'{", ".join(keys)} of {len(curves)} runs: {args.out}')


def draw(curves: list, names: list[str], keys: list[str], path: Path) -> None:
    figure = Figure(figsize=(4.2 * len(keys), 3.6), layout='constrained')
    for axis, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        for number, curve in enumerate(curves):
            if key in curve:
                x, y = curve[key]
                # Few points, as of validation, would not be seen as a line.
                marker = 'o' if len(x) < 20 else None
                axis.plot(x, y, label=names[number], color=f'C{number}', marker=marker, markersize=4)
        axis.set_xlim(left=0)
        if axis.dataLim.ymin >= 0:
            # A single point would set its own scale, and small changes would look large.
            axis.set_ylim(bottom=0)
        axis.set_xlabel('iteration')
        axis.set_ylabel(f'{key} (%)' if key == 'mIoU' else key)
        axis.grid(alpha=0.3)
        axis.legend(fontsize='small')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == '__main__':
    main()
