"""The command line of a virtual container host: brings one up, ends it, shows it, checks the machine."""
