#!/usr/bin/env python3
"""Make the demo data set: handwritten digits over photographs, in the COCO and the ADE layout."""

import argparse
import time

from mmmobilemamba.datasets.demo import make_demo_data


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('root', nargs='?', default='data/demo', help='folder to make')
    parser.add_argument('--seed', type=int, default=0, help='seed of everything random')
    parser.add_argument('--num-train', type=int, default=800, help='training pictures')
    parser.add_argument('--num-val', type=int, default=80, help='validation pictures')
    parser.add_argument('--image-size', type=int, default=160, help='height and width in pixels')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    start = time.perf_counter()
    try:
        made = make_demo_data(**vars(args))
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    if made:
        print(
            f'{args.root}: {args.num_train} training and {args.num_val} validation pictures, '
            f'made in {time.perf_counter() - start:.0f} s'
        )
    else:
        print(f'{args.root} is already there')


if __name__ == '__main__':
    main()
