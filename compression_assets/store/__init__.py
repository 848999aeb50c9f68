"""What a study leaves on disk: artifacts, locks, tables, and the fingerprints that recognise finished work."""
