"""Settings for every test: Hypothesis without deadlines, because first calls compile, and reproducible."""

from hypothesis import settings

settings.register_profile("refloss", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("refloss")
