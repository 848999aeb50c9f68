"""Resources that assets ask for: the device and the storage of the study."""
