"""Where prices come from: the table in the package, price lists, and the providers themselves."""
