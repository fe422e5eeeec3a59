"""Windows, curation, recipes, evaluation and the student registry."""
