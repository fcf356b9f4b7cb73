"""What the commands share: arguments, progress, drawn boxes."""
