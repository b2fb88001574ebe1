"""config.yaml: its schema, and a loader that reports every mistake with its place in the file."""
