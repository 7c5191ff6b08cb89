"""The vocabulary: frozen types, ids, money, errors, and the World that owns time and chance."""
