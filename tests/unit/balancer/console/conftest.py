"""The relay's simulation of a worker, for what the console asks of one."""

from tests.unit.balancer.relay.conftest import make as make
