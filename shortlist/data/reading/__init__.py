"""Reading of people's own files: each kind of file becomes documents of sections."""
