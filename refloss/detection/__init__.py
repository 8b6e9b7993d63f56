"""What the DETR-like heads share: targets, matching, terms, and the engine that runs them layer by layer."""
