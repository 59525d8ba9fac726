"""The published variants of MobileMamba (paper, Tab. 1) and the description of one's own."""

from dataclasses import dataclass, fields
from typing import Any

NUM_STAGES = 3


@dataclass(frozen=True)
class Arch:
    """What distinguishes one MobileMamba from another; a field with three values has one per stage.

    Attributes:
        widths: channels of the stages.
        depths: blocks of the stages.
        drop_path_rate: largest drop-path probability, reached linearly over the blocks.
        global_ratios: shares of the channels mixed by the wavelet-enhanced scan.
        local_ratios: shares mixed by the depth-wise convolutions.
        kernel_sizes: sides of the depth-wise kernels.
        ssm_expansion: inner width of the scan over its width.
        d_state: state size N of the scan.
        wavelet: discrete wavelet of PyWavelets.
        wavelet_levels: levels of the wavelet transform.
    """

    widths: tuple[int, int, int]
    depths: tuple[int, int, int]
    drop_path_rate: float = 0.0
    global_ratios: tuple[float, float, float] = (0.8, 0.7, 0.6)
    local_ratios: tuple[float, float, float] = (0.2, 0.2, 0.3)
    kernel_sizes: tuple[int, int, int] = (7, 5, 3)
    ssm_expansion: float = 2.0
    d_state: int = 1
    wavelet: str = 'haar'
    wavelet_levels: int = 1

    @classmethod
    def create(cls, arch: 'str | dict[str, Any]') -> 'Arch':
        """A published variant by its name, or one of your own from a dict of the fields.

        Raises:
            ValueError: for an unknown name, an unknown or missing field, or a value out of range.
        """
        if isinstance(arch, str) and arch in ARCHS:
            return ARCHS[arch]
        if not isinstance(arch, dict):
            raise ValueError(
                f'arch={arch!r} is unknown; allowed are {", ".join(ARCHS)}, or a '
                f'dict of the fields {", ".join(f.name for f in fields(cls))}'
            )
        allowed = [f.name for f in fields(cls)]
        unknown = sorted(set(arch) - set(allowed))
        missing = [name for name in ('widths', 'depths') if name not in arch]
        if unknown or missing:
            raise ValueError(
                f'arch dict: unknown fields {unknown}, missing fields {missing}; '
                f'allowed are {", ".join(allowed)}, of which widths and depths are '
                'required'
            )
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in arch.items()})

    def __post_init__(self) -> None:
        def require(name: str, ok: bool, allowed: str) -> None:
            if not ok:
                raise ValueError(f'arch field {name}={getattr(self, name)!r} is not allowed: {allowed}')

        def three(name: str, kind: type | tuple[type, ...], low: float, high: float) -> bool:
            value = getattr(self, name)
            return (
                isinstance(value, tuple)
                and len(value) == NUM_STAGES
                and all(isinstance(v, kind) and low <= v <= high for v in value)
            )

        number, most = (int, float), float('inf')
        require(
            'widths',
            three('widths', int, 16, most) and self.widths[0] % 8 == 0,
            'three integers of at least 16, the first a multiple of 8',
        )
        require('depths', three('depths', int, 1, most), 'three integers of at least 1')
        require(
            'drop_path_rate',
            isinstance(self.drop_path_rate, number) and 0 <= self.drop_path_rate < 1,
            'a number in [0, 1)',
        )
        require('global_ratios', three('global_ratios', number, 0, 1), 'three numbers in [0, 1]')
        require('local_ratios', three('local_ratios', number, 0, 1), 'three numbers in [0, 1]')
        require(
            'kernel_sizes',
            three('kernel_sizes', int, 1, most) and all(k % 2 for k in self.kernel_sizes),
            'three odd integers',
        )
        require(
            'ssm_expansion',
            # Of the narrowest global branch, 16 channels, something must be left.
            isinstance(self.ssm_expansion, number) and 16 * self.ssm_expansion >= 1,
            'a number of at least 1/16',
        )
        require('d_state', isinstance(self.d_state, int) and self.d_state > 0, 'an integer above 0')
        require(
            'wavelet_levels',
            isinstance(self.wavelet_levels, int) and self.wavelet_levels > 0,
            'an integer above 0',
        )


_B = Arch(widths=(200, 376, 448), depths=(2, 3, 2), drop_path_rate=0.03)
ARCHS: dict[str, Arch] = dict(
    t2=Arch(widths=(144, 272, 368), depths=(1, 2, 2)),
    t4=Arch(widths=(176, 368, 448), depths=(1, 2, 2)),
    s6=Arch(widths=(192, 384, 448), depths=(1, 2, 2)),
    # One network, published for three input sizes.
    b1=_B,
    b2=_B,
    b4=_B,
)
