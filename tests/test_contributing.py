"""The example for contributors is a method that passes every check."""

from __future__ import annotations

import re
from pathlib import Path

from acclimate.testing import check_method

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"


def test_the_example_is_a_sound_method(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "mean_matching.py").write_text(code, encoding="utf-8")
    check_method(f"{tmp_path / 'mean_matching.py'}:MeanMatching")
