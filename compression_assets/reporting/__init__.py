"""The report of a study: one page, made from the database and the manifests; nothing is measured here."""
