"""Parts that all commands share: command-line parsers and output, the progress display, drawing of boxes."""
