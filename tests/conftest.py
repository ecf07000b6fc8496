"""Settings of all tests. Hypothesis measures no time: on two shared cores an example of 30 ms has taken 340 ms. Programs
speak English and UTF-8: shells and servers say in every locale, or of one that is not installed, what no test expects."""

import os

from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
os.environ["LC_ALL"] = "C.UTF-8"
os.environ.pop("LANGUAGE", None)
