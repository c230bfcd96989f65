"""What a run is and how it is run: specs, recipes, methods, the runner and its executors."""
