"""What `make demo` needs besides the pipeline itself: its annotated set."""
