"""The losses and assigners that users import: input checks, choice of backend, normalisers."""
