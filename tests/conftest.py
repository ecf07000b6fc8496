"""Settings of all tests. Hypothesis measures no time: on two shared cores an example of 30 ms has taken 340 ms."""

from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
