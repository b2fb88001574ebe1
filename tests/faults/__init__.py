"""Everything may die, and all comes back: scripted faults with a seed, while checked traffic runs."""
