"""The losses that users import: checks, choice of backend, normalisers."""
