"""Plans: which keys a statement reads, the stages it is cut into, and how EXPLAIN shows them."""
