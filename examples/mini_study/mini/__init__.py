"""The mini study's data: real drawings with names, real prose, tasks and conversations made of them by rule."""
