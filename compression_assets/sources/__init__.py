"""Where models and conversations come from: hub, local files, wheels, random numbers."""
