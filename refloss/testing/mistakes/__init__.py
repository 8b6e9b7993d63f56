"""What implementations usually get wrong: as other cases, as factors, as mutants that a bound has to reject."""
