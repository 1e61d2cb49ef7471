"""One module a family: the rows of the conformance suite. A new module is found by itself."""
