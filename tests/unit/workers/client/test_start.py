"""What is checked before the first byte is sent."""

import dataclasses

import pytest

from workers.client.options import parse_client
from workers.client.start import OWN_FILES, StartError, check_descriptors


@pytest.mark.parametrize(("minconns", "maxconns", "fits"), [(1, 84, True), (1, 85, False), (85, 0, False)])
def test_a_run_that_would_be_out_of_descriptors_does_not_start(
    minconns: int, maxconns: int, fits: bool
) -> None:
    options = parse_client(["--input", "/", "-w", "1"], {})
    options = dataclasses.replace(options, minconns=minconns, maxconns=maxconns)
    if fits:
        check_descriptors(options, 84 + OWN_FILES)
    else:
        with pytest.raises(StartError, match="85 connections do not fit 100 open files"):
            check_descriptors(options, 84 + OWN_FILES)
