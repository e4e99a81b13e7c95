"""The recipe of the bundled sample data: one module an idea, run in order by ``build.py``."""
