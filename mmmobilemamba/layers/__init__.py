from .block import Downsample, MobileMambaBlock
from .conv_bn import FFN, ConvBN, ResidualConvBN
from .mrffi import MRFFI, MKDeConv, WaveletMamba, split_channels
from .ss2d import SS2D
from .stage import Stage
from .stem import Stem
from .wavelet import WaveletConv, dwt2d, idwt2d, wavelet_filters

__all__ = [
    'FFN',
    'MRFFI',
    'SS2D',
    'ConvBN',
    'Downsample',
    'MKDeConv',
    'MobileMambaBlock',
    'ResidualConvBN',
    'Stage',
    'Stem',
    'WaveletConv',
    'WaveletMamba',
    'dwt2d',
    'idwt2d',
    'split_channels',
    'wavelet_filters',
]
