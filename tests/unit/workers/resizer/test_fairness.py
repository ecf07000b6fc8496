"""What greedy clients cost a modest one, in pictures: nobody's clock is asked."""

from statistics import fmean, median

import pytest

from tests.unit.workers.resizer.fairness_simulation import Crowd, FairnessSimulation


@pytest.mark.parametrize("has_one_address", [False, True], ids=["another address", "one address"])
@pytest.mark.parametrize("is_small", [True, False], ids=["small", "big"])
@pytest.mark.parametrize(("greedy", "pipeline"), [(8, 1), (8, 4), (80, 1), (200, 1)])
@pytest.mark.parametrize("cpus", [1, 2])
def test_a_modest_client_waits_for_less_than_a_picture(
    cpus: int, greedy: int, pipeline: int, is_small: bool, has_one_address: bool
) -> None:
    """A small picture is begun at once in the express process; a big one when the next process is through."""
    crowd = Crowd(greedy, has_one_address, is_small, pipeline, work=0.002 if is_small else 0.03)
    simulation = FairnessSimulation(crowd, cpus)
    simulation.run(20 if is_small else 300)
    waits = [wait / crowd.work for wait in simulation.waits]
    assert len(waits) > 10
    assert median(simulation.overtakers) == 0, "those that were sent ahead are counted, too"
    assert fmean(waits) < (0.25 if is_small else 0.75)
    assert simulation.refused <= len(waits) / 20


@pytest.mark.parametrize("greedy", [1, 2, 3, 4, 6, 8, 16, 60])
def test_clients_that_ask_alike_leave_the_cores_to_the_cpu_processes(greedy: int) -> None:
    """Each core has one process at work: a further one costs context switches and gains nothing."""
    simulation = FairnessSimulation(Crowd(greedy), cpus=2)
    simulation.period = 1000.0
    simulation.run(10)
    assert simulation.begun > 2000
    assert simulation.express <= simulation.begun / 100
