"""Settings of the commands whose own modules load PyTorch, which takes seconds."""
