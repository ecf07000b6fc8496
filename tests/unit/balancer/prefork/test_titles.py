"""Titles change at most once a second, and the last text asked for stays."""

from balancer.prefork.titles import Title


def test_at_most_one_change_a_second_and_the_last_one_wins() -> None:
    shown: list[str] = []
    title = Title("balancer", apply=shown.append)
    title.set("worker 0 [0 sessions]", now=100.0)
    for count in range(1, 50):
        title.set(f"worker 0 [{count} sessions]", now=100.0 + count * 0.01)
    assert shown == ["balancer: worker 0 [0 sessions]"]
    title.settle(now=100.9)
    assert len(shown) == 1
    title.settle(now=101.0)
    assert shown[1:] == ["balancer: worker 0 [49 sessions]"]


def test_an_unchanged_text_is_not_shown_again_and_delays_no_other() -> None:
    shown: list[str] = []
    title = Title("balancer", apply=shown.append)
    title.set("prober", now=1.0)
    title.set("prober", now=5.0)
    title.set("prober [1/1 up]", now=5.1)
    assert shown == ["balancer: prober", "balancer: prober [1/1 up]"]


def test_a_forked_process_shows_its_own_title_at_once() -> None:
    shown: list[str] = []
    title = Title("balancer", apply=shown.append)
    title.set("master [2 workers]", now=1.0)
    title.fresh("worker 1 [0 sessions]", now=1.001)
    assert shown[-1] == "balancer: worker 1 [0 sessions]"
