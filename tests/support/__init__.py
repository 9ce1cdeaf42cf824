"""Tools that several tests share: networks, naive references, recipes, tolerances, fakes."""
