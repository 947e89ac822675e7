"""The report: results as pages that a browser shows without a server; nothing is measured here."""
