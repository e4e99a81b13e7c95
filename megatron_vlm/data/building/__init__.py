"""Records into an indexed dataset: by workers, unit by unit, resumable, with the same bytes whatever happens in between."""
