"""Memory that all processes of one master share: the table of counters, its layout, the notice, the events."""
