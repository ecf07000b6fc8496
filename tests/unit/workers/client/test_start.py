"""What is decided before the first byte goes out."""

from types import SimpleNamespace
from typing import Any

import pytest

from workers.client import start


@pytest.mark.parametrize(("minconns", "maxconns", "fits"), [(1, 84, True), (1, 85, False), (85, 0, False)])
def test_a_run_that_would_be_out_of_descriptors_is_not_begun(
    monkeypatch: pytest.MonkeyPatch, minconns: int, maxconns: int, fits: bool
) -> None:
    monkeypatch.setattr(start, "raise_file_limit", lambda: 84 + start.OWN_FILES)
    options: Any = SimpleNamespace(minconns=minconns, maxconns=maxconns)
    if fits:
        start._check_descriptors(options)
    else:
        with pytest.raises(start.CannotBegin, match="85 connections do not fit 100 open files"):
            start._check_descriptors(options)
