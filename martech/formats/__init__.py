"""How times are written for people: `FORMAT_MODULE_PATH`."""
