"""What to run: options or TOML become one experiment, and the experiment a graph of runs."""
