"""Sessions for loops that a framework runs. Import the module of the framework at hand."""
