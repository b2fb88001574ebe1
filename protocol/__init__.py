"""What the two agents say to each other."""
