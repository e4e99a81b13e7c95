"""What a run costs, counted from its shapes."""
