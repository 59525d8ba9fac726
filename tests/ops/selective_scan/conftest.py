import pytest

from mmmobilemamba.ops.selective_scan import interface, native_backend, torch_backend


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """The lines that the scan writes to the log."""
    lines = []
    for module in (interface, native_backend, torch_backend):
        monkeypatch.setattr(module, 'print_log', lambda line, logger: lines.append(line))
    return lines
