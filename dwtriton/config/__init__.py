"""The configuration: its schema, TOML files, and the presets that ship with the package."""
