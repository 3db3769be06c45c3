"""Stage 01, data: real text from packages, as data cards and then as curated documents.

Sources and cards come first; extraction, filters, deduplication and the split read them.
"""
