"""The Python blocks of docs/metrics.md run as they stand there, one after another."""

import re
from pathlib import Path

import pytest

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs/metrics.md").read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_blocks_run(capsys):
    pytest.importorskip("captum", reason="captum is not installed (extra peers)")
    names = {}
    for block in BLOCKS:
        exec(block, names)
    assert "| confidence_drop ↓ | gini ↑ |" in capsys.readouterr().out
    assert names["curve"].scores.shape == (2, 15)
    assert len(BLOCKS) == 3
