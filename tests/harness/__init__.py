"""What runs the tests: the compilation cache they share, proofs that need not be given twice, budgets of time."""
