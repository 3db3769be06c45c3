"""Real text from its packages to documents: sources and cards, then extraction, filters,
deduplication and splits.
"""
