#!/usr/bin/env python3
"""Write a checkpoint of mmmobilemamba in the authors' layout.

The other direction needs no tool: the authors' files load as they are, through
`init_cfg=dict(type='Pretrained', checkpoint=…)`, `load_from` and tools/test.py.
"""

import argparse
from pathlib import Path

import torch

from mmmobilemamba.checkpoint import read_checkpoint, to_authors_checkpoint
from mmmobilemamba.engine.config import check_writable
from mmmobilemamba.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', help='checkpoint of a backbone, detector or segmentor trained here')
    parser.add_argument('target', type=Path, help='file to write')
    parser.add_argument('--wavelet', help='wavelet of the backbone, if the checkpoint has no config')
    args = parser.parse_args()
    if args.target.exists():
        parser.error(f'{args.target} exists already; name another file')
    try:
        check_writable(args.target.parent, 'TARGET')
        checkpoint = to_authors_checkpoint(read_checkpoint(args.source), args.wavelet)
    except UserError as err:
        parser.error(str(err))
    args.target.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, args.target)
    print(f"{args.target}: {len(checkpoint.get('state_dict', checkpoint))} tensors in the authors' layout")


if __name__ == '__main__':
    main()
