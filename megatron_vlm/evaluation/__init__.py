"""What a checkpoint can do: held-out losses, the blind control, naming of pictures."""
