"""refloss beside torch and transformers: the only part of the project that imports them."""
