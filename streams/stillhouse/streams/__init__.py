"""Stream processors: events in, stored and scored trajectories out."""
