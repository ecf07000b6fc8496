"""The event loop and what stands on it: timers, signals, log; accepting, buffered connections, HTTP; classes of errno.

Knows neither the processes nor what they serve."""
