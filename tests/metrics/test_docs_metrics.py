"""The Python blocks of docs/metrics.md run as they stand there, one after another."""

import pytest
from support.documents import run_python


@pytest.mark.slow
def test_the_blocks_run(capsys):
    pytest.importorskip("captum", reason="captum is not installed (extra peers)")
    names = run_python("docs/metrics.md")
    printed = capsys.readouterr().out
    assert "| confidence_drop ↓ | gini ↑ |" in printed
    sensitivity, infidelity = (float(line.split("[")[1].split(",")[0]) for line in printed.splitlines()[-2:])
    assert 0 < sensitivity < 10 and infidelity >= 0
    assert names["curve"].scores.shape == (2, 15)
