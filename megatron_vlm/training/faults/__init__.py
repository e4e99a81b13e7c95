"""What goes wrong while a run runs: bad steps, lost ranks, replicas that differ."""
