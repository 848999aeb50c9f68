"""Where bytes go and what they run on: artifact store, metrics database, devices."""
