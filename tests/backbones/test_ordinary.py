"""What users of PyTorch expect of any module."""

import threading

import pytest
import torch

from mmmobilemamba import MobileMamba

TINY = dict(widths=[16, 24, 32], depths=[1, 1, 1])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MobileMamba(TINY).eval()


@pytest.mark.parametrize('deploy', [False, True], ids=['as trained', 'deployed'])
def test_export(model, deploy):
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)
    if deploy:
        model.switch_to_deploy()
    program = torch.export.export(model, (x,))
    for output, reference in zip(program.module()(x), expected, strict=True):
        torch.testing.assert_close(output, reference, atol=1e-4, rtol=1e-4)


def test_compiles_without_a_graph_break_when_deployed(model):
    model.switch_to_deploy()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
        for output, reference in zip(compiled(x), expected, strict=True):
            torch.testing.assert_close(output, reference, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('deploy', [False, True], ids=['as trained', 'deployed'])
def test_several_threads_at_once(model, deploy):
    if deploy:
        model.switch_to_deploy()
    images = torch.randn(4, 1, 3, 64, 48)
    with torch.inference_mode():
        expected = [model(x)[-1] for x in images]
    results = [None] * len(images)

    def run(i):
        with torch.inference_mode():
            for _ in range(5):
                results[i] = model(images[i])[-1]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference)
