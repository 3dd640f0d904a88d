"""Everything that chooses pairs."""
