"""Real programs in the full guest, used from the host through the forwards, as a new user would."""
