"""The event loop and what stands on it: timers, signals, the log. Knows neither processes nor traffic."""
