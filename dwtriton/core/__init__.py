"""Shared by all rooms: points, packed targets, head outputs, transfers, errors, files, ranks; needs torch and numpy."""
