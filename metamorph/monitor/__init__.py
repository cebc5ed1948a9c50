"""What a run shows of itself: means, bad steps, telemetry, trackers, drawings, traces."""
