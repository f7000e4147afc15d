"""Networks by the library that defines them: from a config and a checkpoint to a module, and back to the same names."""
