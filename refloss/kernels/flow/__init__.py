"""Terms of flow matching and self-distillation: weighted squared lengths of rows' residuals."""
