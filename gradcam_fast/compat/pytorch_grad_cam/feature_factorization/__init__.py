"""Deep feature factorisation."""
