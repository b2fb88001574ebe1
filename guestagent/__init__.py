"""The guest side: notices ports, relays streams, runs commands; frozen with PyInstaller."""
