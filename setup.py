import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SOURCES = 'mmmobilemamba/ops/csrc'


def read_version() -> str:
    scope = {}
    exec((ROOT / 'mmmobilemamba' / 'version.py').read_text(), scope)
    return scope['__version__']


class BuildPy(build_py):
    """Adds the configs and the model index, where mim looks for them in an installed package."""

    def run(self) -> None:
        super().run()
        if not getattr(self, 'editable_mode', False):
            mim = Path(self.build_lib, 'mmmobilemamba', '.mim')
            shutil.copytree(ROOT / 'configs', mim / 'configs', dirs_exist_ok=True)
            shutil.copy(ROOT / 'model-index.yml', mim)


def native_library() -> tuple[list[Extension], dict[str, type]]:
    """The library of CPU operators, where torch is there to build it against, and its build command.

    pip hides the installed torch from a build unless it is told --no-build-isolation. Without the
    library the package works as well, only slower, and says so when it runs.
    """
    if os.environ.get('MMMOBILEMAMBA_NATIVE') == '0':
        return [], {}
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        return [], {}
    # Apple's compiler has no OpenMP; there the library runs on one thread.
    threads = '-fopenmp-simd' if sys.platform == 'darwin' else '-fopenmp'
    flags = ['-O3', '-fno-math-errno', '-fno-trapping-math', '-Wno-psabi', threads]
    extension = CppExtension(
        # The release is in the name, so that another one does not load it.
        'mmmobilemamba._native_torch' + '_'.join(torch.__version__.split('.')[:2]),
        sorted(map(str, Path(SOURCES).glob('*.cpp'))),
        depends=sorted(map(str, Path(SOURCES).glob('*.h'))),
        extra_compile_args=flags,
        extra_link_args=flags[-1:],
        # A machine without a working compiler gets the package without the library.
        optional=True,
    )
    return [extension], dict(
        build_ext=BuildExtension.with_options(use_ninja=False, no_python_abi_suffix=True)
    )


extensions, commands = native_library()
setup(
    name='mmmobilemamba',
    version=read_version(),
    description='MobileMamba backbones for OpenMMLab detectors and segmentors',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='MIT',
    packages=find_packages(include=['mmmobilemamba', 'mmmobilemamba.*']),
    python_requires='>=3.10',
    # The OpenMMLab packages are an extra, not requirements: the onedl-* forks provide the same
    # imports under other names, and pip would put a second mmcv beside theirs.
    install_requires=['torch>=2.1', 'numpy', 'PyWavelets'],
    extras_require={
        'openmmlab': [
            'mmengine>=0.10,<1',
            'mmcv>=2.0.0rc4,<2.2',
            'mmdet>=3.3,<3.4',
            'mmsegmentation>=1.2.2,<1.3',
            'ftfy',
            'regex',
        ],
        'cuda': ['mamba-ssm'],
        'demo': ['pycocotools', 'scikit-image>=0.19', 'scikit-learn>=1.0'],
        'dev': ['hypothesis', 'pytest>=7', 'pytest-xdist>=3.2', 'ruff'],
    },
    ext_modules=extensions,
    cmdclass=dict(build_py=BuildPy, **commands),
)
