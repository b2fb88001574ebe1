"""Everything that parses what somebody else wrote, against a million inputs that nobody meant."""
