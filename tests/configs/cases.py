from pathlib import Path
from typing import NamedTuple

CONFIGS = Path(__file__).parents[2] / 'configs'


class Case(NamedTuple):
    """A published config and what the authors' code has or counts for it."""

    name: str
    parameters: float  # millions
    flops: float | None  # billions of multiply-adds, without the scan
    size: tuple[int, int]  # height and width in pixels that the FLOPs are for

    @property
    def file(self) -> Path:
        return CONFIGS / f'{self.name}.py'

    @property
    def demo(self) -> Path:
        return self.file.parent / 'demo' / f'{self.file.stem}_demo.py'


CASES = (
    Case('det/retinanet_mobilemamba', 27.054, 168, (800, 1280)),
    # Their table says 178 G, which nobody has reproduced.
    Case('det/mask_rcnn_mobilemamba', 37.955, None, (800, 1280)),
    Case('det/ssdlite_mobilemamba', 18.021, 1.711, (320, 320)),
    Case('det/ssdlite_mobilemamba_512', 18.021, 4.374, (512, 512)),
    Case('seg/deeplabv3_mobilemamba', 23.895, 4.627, (512, 512)),
    Case('seg/pspnet_mobilemamba', 21.470, 4.456, (512, 512)),
    Case('seg/semantic_fpn_mobilemamba', 19.759, 5.564, (512, 512)),
)
