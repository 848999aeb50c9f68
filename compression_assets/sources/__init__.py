"""Where models, conversations and questions come from: hub, local files, wheels, random numbers."""
