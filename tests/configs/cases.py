from pathlib import Path
from typing import NamedTuple

from tiny import REPOSITORY

CONFIGS = REPOSITORY / 'configs'


class Case(NamedTuple):
    """A published config and what the authors' code has or counts for it."""

    name: str
    parameters: float  # millions

    @property
    def file(self) -> Path:
        return CONFIGS / f'{self.name}.py'

    @property
    def demo(self) -> Path:
        return self.file.parent / 'demo' / f'{self.file.stem}_demo.py'


CASES = (
    Case('det/retinanet_mobilemamba', 27.054),
    Case('det/mask_rcnn_mobilemamba', 37.955),
    Case('det/ssdlite_mobilemamba', 18.021),
    Case('det/ssdlite_mobilemamba_512', 18.021),
    Case('seg/deeplabv3_mobilemamba', 23.895),
    Case('seg/pspnet_mobilemamba', 21.470),
    Case('seg/semantic_fpn_mobilemamba', 19.759),
)
