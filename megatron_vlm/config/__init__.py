"""What a run is: frozen dataclasses filled by YAML presets and the command line, and checked before anything starts."""
