"""One file a family: what its config.json means in this project's configuration, and its tensors' names."""
